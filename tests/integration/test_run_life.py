"""A whole run on the real engines: to its end, as people wish, through a dead controller and an impatient person."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.integration.run_process import RunProcess, assert_finished, assert_no_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_people_pause_and_promote_a_run_and_its_gate_goes_back_to_the_shortest(tmp_path: Path) -> None:
    gate = "steps.1.rl.stages.0.gate"
    run = RunProcess.start(
        tmp_path, "verbs", f"{gate}.name=manual", f"{gate}.rollback=length_minimum",
        "steps.1.rl.checkpoints.every_iterations=1",
    )  # fmt: skip
    run.wait_for("iteration 2", lambda: 2 in run.iterations())
    run.verb("pause")
    run.wait_for("the pause", lambda: run.events("run.paused"))
    time.sleep(3.0)
    while_paused = run.iterations()
    time.sleep(3.0)
    assert run.iterations() == while_paused
    run.verb("unpause")
    run.wait_for("the next iteration", lambda: len(run.iterations()) > len(while_paused))
    run.verb("promote")
    run.wait_for("the promotion", lambda: run.events("stage.promote"))
    promoted_after = max(run.iterations())
    assert_finished(run, iterations=promoted_after + 6, first_left_by="manual")
    assert len(run.events("branch.opened")) == 1
    assert {row["branch"] for row in run.rows("metrics.jsonl") if "branch" in row} == {0, 1}


def test_a_killed_controller_is_resumed_from_commit_and_redo_log(tmp_path: Path) -> None:
    run = RunProcess.start(tmp_path, "controller")
    run.wait_for("iteration 5", lambda: 5 in run.iterations())
    os.kill(run.controller_pid(), signal.SIGKILL)
    assert run.wait() == 75
    assert "crescendo resume" in run.text
    assert_no_process(run)

    again = RunProcess.resume(run.folder)
    assert_finished(again)
    assert len(again.events("run.restored")) == 1
    # Committed at 2 and 4 (and at the promotion after 3): iteration 5 was recorded, so it is trained again, not rolled.
    retrained = [event["message"] for event in again.events("batch.retrained")]
    assert len(retrained) <= 2
    assert again.iterations().count(4) == 1


def test_ctrl_c_twice_ends_at_once_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    run = RunProcess.start(tmp_path, "impatient")
    run.wait_for("iteration 2", lambda: 2 in run.iterations())
    run.interrupt()
    run.interrupt()
    assert run.wait() == 130
    assert "crescendo resume" in run.text
    assert_no_process(run)
    assert_finished(RunProcess.resume(run.folder))
