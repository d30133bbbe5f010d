"""A whole run on the real engines that loses each of its processes, or one of them at its start."""

import os
import signal
from pathlib import Path

import pytest

from tests.integration.run_process import RunProcess, assert_clean, assert_finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


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
