"""One worker process as the pool sees it: its socket, the tasks it has, and the clock of the one it is at."""

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol, cast

from google.protobuf.message import DecodeError

from crescendo.proto.v1 import reward_pb2
from crescendo.reward_service.scorers import SANDBOX_SCORERS
from crescendo.reward_service.workers.frames import FrameReader, FrameTooLongError, frame
from crescendo.reward_service.workers.tasks import Task

MAX_ANSWER_BYTES = 64 * 1024
MAX_PROGRAMS_BYTES = 64 << 20  # of an answer that may carry programs
# An answer may lie unread in the socket when the clock fires late (a stopped or starved executor); look once more.
SECOND_LOOK_S = 0.005
# What an item may still take when nobody waits for it any more. Killing a worker costs about as much.
ABANDONED_S = 0.05


class Owner(Protocol):
    """What a handle tells its pool."""

    def answered(self, handle: "WorkerHandle", task: Task, answer: reward_pb2.WorkerAnswer) -> None:
        """A task has its answer."""

    def expired(self, handle: "WorkerHandle") -> None:
        """The first task passed its deadline."""

    def broke_protocol(self, handle: "WorkerHandle", reason: str) -> None:
        """The worker said what no worker says."""

    def ended(self, handle: "WorkerHandle") -> None:
        """The socket ended though nobody killed the worker."""


class WorkerHandle(asyncio.Protocol):
    """Sends tasks, pairs answers with them in order, and measures the first task's time."""

    def __init__(self, pid: int, owner: Owner, *, is_single: bool = False) -> None:
        self.pid = pid
        self.is_single = is_single
        self.in_flight: deque[Task] = deque()
        self.num_sent = 0
        self.num_answered = 0
        self.is_dead = False
        self._owner = owner
        self._reader = FrameReader(MAX_PROGRAMS_BYTES)
        self._transport: asyncio.Transport | None = None
        self._item_started_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._looked_twice = False

    @property
    def item_seconds(self) -> float:
        """Seconds that the first task has taken so far."""
        return time.monotonic() - self._item_started_s

    @property
    def bytes_in_flight(self) -> int:
        """Serialized size of the tasks that have no answer yet."""
        return sum(len(task.payload) for task in self.in_flight)

    def send(self, tasks: Iterable[Task]) -> None:
        """Gives the worker more tasks, in one write."""
        chunk = list(tasks)
        if not chunk or self._transport is None:
            return
        was_idle = not self.in_flight
        self.in_flight.extend(chunk)
        self.num_sent += len(chunk)
        self._transport.write(b"".join(frame(task.payload) for task in chunk))
        if was_idle:
            self._start_clock()

    def hurry(self) -> None:
        """A caller has gone away: if the first task was its, the worker is killed soon, not at the deadline."""
        if self.in_flight and not self.is_dead:
            self._arm(ABANDONED_S)

    def kill(self) -> None:
        """Ends the worker's whole process group at once; the pool then reaps it. Callable repeatedly."""
        self.is_dead = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # The pool has not reaped the process yet, so the id cannot be another's.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is ready."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes came."""
        self._reader.feed(data)
        try:
            for payload in self._reader.payloads():
                if self.is_dead:
                    return
                if len(payload) > MAX_ANSWER_BYTES and not self._may_need_programs():
                    raise FrameTooLongError(f"an answer of {len(payload)} bytes; the limit is {MAX_ANSWER_BYTES}")
                answer = reward_pb2.WorkerAnswer.FromString(payload)
                if not self.in_flight or answer.sequence != self.in_flight[0].sequence:
                    self._owner.broke_protocol(self, "it answered what it was not asked")
                    return
                task = self.in_flight.popleft()
                self.num_answered += 1
                self._start_clock()
                self._owner.answered(self, task, answer)
        except (FrameTooLongError, DecodeError) as error:
            self._owner.broke_protocol(self, str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the socket ended."""
        if not self.is_dead:
            self._owner.ended(self)

    def _may_need_programs(self) -> bool:
        return bool(self.in_flight) and any(spec.name in SANDBOX_SCORERS for spec in self.in_flight[0].item.chain)

    def _start_clock(self) -> None:
        """The first task begins now. A timer that is set for an earlier time looks, and sets itself again."""
        self._item_started_s = time.monotonic()
        self._looked_twice = False
        if self.in_flight and not self.is_dead:
            due_s = asyncio.get_running_loop().time() + self._limit_s
            if self._timer is None or self._timer.when() > due_s:
                self._arm(self._limit_s)

    @property
    def _limit_s(self) -> float:
        """How long the first task may take."""
        task = self.in_flight[0]
        return min(task.deadline_s, ABANDONED_S) if task.batch.is_abandoned else task.deadline_s

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer = None
        if self.is_dead or not self.in_flight:
            return
        remaining_s = self._limit_s - self.item_seconds
        if remaining_s > 0:
            self._arm(remaining_s)
        elif not self._looked_twice:
            self._looked_twice = True
            self._arm(SECOND_LOOK_S)
        else:
            self._owner.expired(self)
