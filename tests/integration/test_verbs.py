"""pause, drain, checkpoint and quarantine through ControllerService, on a run of small parts that is going on."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from crescendo.common.control import ControllerClient, read_controller
from crescendo.common.errors import CrescendoError, RequestError
from crescendo.controller.chaos import audit, gather
from crescendo.proto.v1.controller_pb2 import RunStatus
from tests.integration.light_run import LightRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
LIMIT_S = 60.0


class Going:
    """A light run in a thread, and somebody who speaks to its controller."""

    def __init__(self, run: LightRun) -> None:
        self._run = run
        self.code: int | None = None
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _live(self) -> None:
        self.code = self._run.live(step_s=0.02)

    def ask(self, question: Callable[[ControllerClient], Coroutine[Any, Any, Any]]) -> Any:
        """Puts a question as soon as the controller is there."""

        async def conversation() -> Any:
            found = read_controller(self._run.folder)
            assert found is not None
            client = ControllerClient(found.address, self._run.folder.read_token())
            try:
                return await question(client)
            finally:
                await client.close()

        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                return asyncio.run(conversation())
            except (AssertionError, CrescendoError) as error:
                if isinstance(error, RequestError) or time.monotonic() > deadline or self.code is not None:
                    raise
                time.sleep(0.05)

    def until(self, holds: Callable[[RunStatus], bool]) -> RunStatus:
        """Waits for a status."""
        deadline = time.monotonic() + LIMIT_S
        while not holds(status := self.ask(lambda client: client.status())):
            assert time.monotonic() < deadline, status
            time.sleep(0.02)
        return status

    def ends(self) -> int | None:
        """Waits for its end."""
        self._thread.join(LIMIT_S)
        return self.code


def test_a_drained_run_has_committed_all_it_did_and_stands_still(tmp_path: Path) -> None:
    run = LightRun.prepare(tmp_path, "steps.1.rl.checkpoints.every_iterations=1000")
    going = Going(run)
    going.until(lambda status: status.step == "rl" and status.iteration >= 2 and status.phase == "rollout")
    for _ in range(2):  # a request that is sent again is the same one
        going.ask(lambda client: client.drain("once"))
    still = going.until(lambda status: status.paused)
    assert still.committed_iteration == still.iteration
    time.sleep(0.5)
    later = going.ask(lambda client: client.status())
    assert (later.iteration, later.committed_iteration) == (still.iteration, still.committed_iteration)
    going.ask(lambda client: client.resume())
    assert going.ends() == 0, run.last_words()
    assert len(run.events("run.draining")) == 1


def test_a_checkpoint_is_made_without_waiting_for_it(tmp_path: Path) -> None:
    run = LightRun.prepare(tmp_path, "steps.1.rl.checkpoints.every_iterations=1000")
    going = Going(run)
    before = going.until(lambda status: status.step == "rl" and status.phase == "rollout")
    assert going.ask(lambda client: client.commit(wait_s=0.0)) == before.committed_iteration
    going.until(lambda status: status.committed_iteration > before.committed_iteration)
    assert going.ends() == 0, run.last_words()


def test_an_engine_in_quarantine_loses_nothing_and_does_not_come_back(tmp_path: Path) -> None:
    run = LightRun.prepare(
        tmp_path, "rollout.num_engines=2", "placement.num_devices=2", "rollout.max_concurrency=2",
        *(f"steps.1.rl.stages.{number}.prompts_per_iteration=8" for number in range(2)),
    )  # fmt: skip
    going = Going(run)
    going.until(lambda status: status.phase == "rollout" and status.phase_progress > 0)
    with pytest.raises(RequestError, match=r"'rollout-7' is no engine of this run; it has: rollout-0, rollout-1"):
        going.ask(lambda client: client.quarantine("rollout-7"))
    going.ask(lambda client: client.quarantine("rollout-1"))
    with pytest.raises(RequestError, match="rollout-0 is the only engine left"):
        going.ask(lambda client: client.quarantine("rollout-0"))
    going.until(lambda status: len(run.events("engine.left")) == 1)
    controller = read_controller(run.folder)
    assert controller is not None
    os.kill(controller.pid, signal.SIGKILL)
    assert going.ends() == -signal.SIGKILL

    going = Going(run)
    going.until(lambda status: status.phase == "rollout")
    with pytest.raises(RequestError, match="rollout-0 is the only engine left"):
        going.ask(lambda client: client.quarantine("rollout-0"))
    assert going.ends() == 0, run.last_words()
    assert [event["facts"]["worker"] for event in run.events("engine.left")] == ["rollout-1"]
    assert run.events("engine.joined") == []
    assert audit(asyncio.run(gather(run.folder))) == []
