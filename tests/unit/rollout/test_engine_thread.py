"""EngineThread: when a waiting request counts as waiting, and steps in lockstep with whoever reads their outputs."""

import threading
import time
from collections.abc import Sequence

from crescendo.common.errors import CrescendoError
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.base import EngineOutput, EngineRequest, Output
from crescendo.rollout.engine.thread import EngineThread

GOES_ON = common_pb2.FINISH_REASON_UNSPECIFIED
REQUEST = EngineRequest("r", [1], 99, common_pb2.Sampling())


class Counter:
    """An engine that notes which requests were in each step."""

    max_sequence_tokens = 100

    def __init__(self) -> None:
        self.running: list[str] = []
        self.steps: list[tuple[str, ...]] = []
        self.gate = threading.Event()
        self.gate.set()

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def add(self, request: EngineRequest) -> None:
        self.running.append(request.request_id)

    def step(self) -> list[Output]:
        self.gate.wait(10)
        self.steps.append(tuple(self.running))
        return [EngineOutput(one, [1], [0.0], GOES_ON) for one in self.running]

    def abort(self, request_ids: Sequence[str]) -> None:
        self.running = [one for one in self.running if one not in request_ids]

    def close(self) -> None:
        pass


class Ending:
    """A sink that ends a request after some outputs."""

    def __init__(self, thread: EngineThread, after: int) -> None:
        self.thread, self.left = thread, after
        self.ended = threading.Event()

    def on_outputs(self, outputs: Sequence[Output]) -> None:
        self.left -= 1
        if self.left == 0:
            time.sleep(0.05)  # an engine that does not wait takes many steps meanwhile
            self.thread.forget([one.request_id for one in outputs])
            self.ended.set()

    def on_failure(self, error: CrescendoError) -> None:
        raise error


async def started(engine: Counter, *, lockstep: bool) -> EngineThread:
    thread = EngineThread(lambda: engine, lockstep=lockstep)  # type: ignore[arg-type, return-value]
    await thread.start(10)
    return thread


async def test_in_lockstep_a_request_that_was_ended_is_in_no_further_step() -> None:
    engine = Counter()
    thread = await started(engine, lockstep=True)
    thread.submit([REQUEST], Ending(thread, after=3))
    await thread.call(lambda _: None, 10)
    while engine.running:
        await thread.call(lambda _: None, 10)
    await thread.stop()
    assert engine.steps == [("r",)] * 3


async def test_idle_time_is_not_held_against_the_next_request() -> None:
    engine = Counter()
    thread = await started(engine, lockstep=False)
    thread._last_step_s = time.monotonic() - 3600.0
    engine.gate.clear()
    thread.submit([REQUEST], Ending(thread, after=1))
    assert thread.progress_age_s < 60.0
    engine.gate.set()
    await thread.stop()
