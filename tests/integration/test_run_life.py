"""A whole run on the real engines: to its end, through dead workers, a dead controller and an impatient person."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.integration.run_process import RunProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def assert_clean(run: RunProcess) -> None:
    assert run.left_behind() == []
    assert run.shared_memory() == []


def assert_finished(run: RunProcess, iterations: int = 9, first_left_by: str = "step") -> None:
    assert run.wait() == 0, run.text
    summary = json.loads((run.folder / "summary.json").read_text())
    assert [stage["left_by"] for stage in summary["stages"]] == [first_left_by, "step", "step"]
    assert summary["accuracy"]["final"] is not None
    assert summary["checks"]["logprob_max_diff"] <= 1e-3
    assert sorted(set(run.iterations())) == list(range(1, iterations + 1))
    assert (run.folder / "export" / "model.safetensors").exists()
    assert_clean(run)


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


def test_an_engine_that_dies_at_start_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    run = RunProcess.start(tmp_path, "stillborn", "rollout.kv_cache_gib=0.00001")
    assert run.wait() == 1
    assert "rollout-0" in run.text
    assert "logs" in run.text
    assert_clean(run)


def test_whatever_is_lost_in_whatever_phase_is_replaced_and_the_run_finishes(tmp_path: Path) -> None:
    run = RunProcess.start(tmp_path, "losses", "steps.0.sft.steps=120", "deadlines.heartbeat_s=25")

    def lose(blow: signal.Signals, pid: int, worker: str) -> None:
        known = len(run.events("worker.replaced"))
        os.kill(pid, blow)
        run.wait_for(f"the replacement of {worker}", lambda: worker in replaced(run)[known:])

    run.wait_for("warm-up", lambda: any("sft_step" in row for row in run.rows("metrics.jsonl")))
    lose(signal.SIGKILL, run.worker_pid("trainer-0"), "trainer")
    run.wait_for("iteration 1", lambda: run.iterations())
    lose(signal.SIGSTOP, run.worker_pid("rollout-0"), "rollout-0")
    lose(signal.SIGKILL, run.worker_pid("reward-0"), "reward")
    lose(signal.SIGKILL, run.descendant("valkey-server"), "buffer")
    run.wait_for("iteration 3", lambda: 3 in run.iterations())
    lose(signal.SIGKILL, run.descendant("raylet"), "trainer")
    assert_finished(run)
    assert [event["facts"]["worker"] for event in run.events("worker.lost")][:2] == ["trainer-0", "rollout-0"]


def replaced(run: RunProcess) -> list[str]:
    """Replacements so far; an engine's may be told under its own name or, in an attempt, among all engines."""
    names = [event["facts"]["worker"] for event in run.events("worker.replaced")]
    return ["rollout-0" if name == "engines" else name for name in names]


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


def assert_no_process(run: RunProcess) -> None:
    assert run.left_behind() == []
