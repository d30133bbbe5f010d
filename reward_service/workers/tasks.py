"""Items on their way through the pool, and the results that the pool itself gives."""

import asyncio
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from crescendo.proto.v1 import common_pb2, reward_pb2
from crescendo.reward_service.scorers import WORKER_SCORERS
from crescendo.reward_service.workers import confine


@dataclass(frozen=True)
class Step:
    """What became of one item in one worker. needed: links whose programs must run before they have a component."""

    result: reward_pb2.ScoreResult
    needed: Sequence[reward_pb2.LinkRuns] = ()


class Batch:
    """The items of one call; `done` ends when each has a step, in order."""

    def __init__(self, size: int) -> None:
        self.steps: list[Step | None] = [None] * size
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._missing = size

    @property
    def is_abandoned(self) -> bool:
        """Whether the caller has gone away."""
        return self.done.cancelled()

    def settle(self, index: int, step: Step) -> None:
        """Stores what became of an item; the first one counts."""
        if self.steps[index] is None:
            self.steps[index] = step
            self._missing -= 1
            if self._missing == 0 and not self.done.done():
                self.done.set_result(None)


@dataclass(frozen=True)
class Task:
    """One item of a batch. payload: the serialized WorkerTask."""

    sequence: int
    item: reward_pb2.ScoreItem
    deadline_s: float
    batch: Batch
    index: int
    payload: bytes
    queued_s: float = field(default_factory=time.perf_counter)

    def settle(
        self,
        components: Sequence[common_pb2.RewardComponent] = (),
        fault: common_pb2.ErrorDetail | None = None,
        seconds: float = 0.0,
        needed: Sequence[reward_pb2.LinkRuns] = (),
    ) -> None:
        """Gives the item its result, or what it needs before it has one."""
        result = reward_pb2.ScoreResult(
            item_id=self.item.item_id,
            components=components,
            fault=fault,
            seconds=seconds,
            boundary=confine.BOUNDARY,
            jail=confine.JAIL,
        )
        self.batch.settle(self.index, Step(result, needed))

    def condemn(self, verdict: common_pb2.Verdict.ValueType, detail: str, seconds: float) -> None:
        """Every link of the chain gets its lowest value and this verdict: the item itself ended its worker."""
        components = [
            common_pb2.RewardComponent(
                name=spec.name,
                raw=WORKER_SCORERS[spec.name].low if spec.name in WORKER_SCORERS else 0.0,
                weight=spec.weight,
                verdict=verdict,
                detail=detail,
            )
            for spec in self.item.chain
        ]
        self.settle(components, seconds=seconds)

    def lose(self, reason: str) -> None:
        """The service, not the item, is at fault: no score, to be tried again."""
        self.settle(fault=common_pb2.ErrorDetail(code="WorkerLostError", message=reason, retryable=True))


def charge(task: Task, wait_status: int, seconds: float) -> None:
    """Settles the item that a worker was at when it ended by itself. wait_status: as waitpid gives it.

    Signals that the item's own work raises are its verdict. SIGKILL comes from outside (an operator, or the
    kernel short of memory), and an exit is the worker's: both are faults of the service.
    """
    if wait_status >= 0 and (number := wait_status & 0x7F):
        if number == signal.SIGXCPU:
            return task.condemn(common_pb2.VERDICT_TIMEOUT, "CPU time limit", seconds)
        if number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
            detail = f"the worker was ended by {signal.Signals(number).name}"
            return task.condemn(common_pb2.VERDICT_SANDBOX_ERROR, detail, seconds)
        return task.lose(f"a worker was killed from outside by signal {number}.")
    return task.lose("a worker ended unexpectedly.")
