"""Watches every process of the run, and says when one is lost.

    process ended                                 lost at once
    does not answer within deadlines.heartbeat_s  hung (stopped, deadlocked, its machine is gone): killed
    answers, works on something, and finishes no
    part of it within deadlines.progress_s        hung: killed

What is lost is marked so (`Worker.lose`), which ends the calls that wait for it. What keeps no state that the
loop must bring back is replaced here, whatever the phase: the reward service with its executor, the archiver, and
the embedded Valkey, which starts again on its append-only file. Trainer and engines are replaced by the loop,
because weights must follow (controller/loop). Each loss, attempt, replacement and giving up is an event.

Lives from `start` to `stop`, as one task on the controller's event loop. Time in which the controller itself
stood still does not count against anybody.
"""

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from crescendo.common.config.schema import Config
from crescendo.common.errors import CrescendoError, WorkerLostError
from crescendo.controller.launch.fleet import Fleet
from crescendo.controller.launch.worker import Worker

log = logging.getLogger(__name__)

R = TypeVar("R")

LOOK_EVERY_S = 0.5
PROBES_PER_HEARTBEAT = 3
ASKED_ROLES = ("reward", "executor")  # report the age of their last item, busy or not
ROOM_BYTES = 4 << 20
BLAMELESS = ("buffer_unreachable", "buffer_refuses")  # waits for somebody else
GANG_LOST = "a rank of its gang is lost"
RECOVERED_AFTER_S = 120.0  # without a loss, earlier attempts are forgotten


class Tell(Protocol):
    """Records an event: Board.event."""

    def __call__(self, kind: str, message: str, *, severity: str = "info", **more: Any) -> None: ...


@dataclass
class Attempts:
    """Attempts at one thing: how long to wait before the next, and when to give up.

    count: in a row, since there was progress; total: ever.
    """

    limit: int
    first_s: float
    longest_s: float
    count: int = 0
    total: int = 0
    _failed_at: float = 0.0

    @property
    def exhausted(self) -> bool:
        """Whether no further attempt should follow."""
        return self.count >= self.limit

    def next_wait_s(self) -> float:
        """Counts an attempt; returns the wait before it: none before the first, then doubling."""
        self.count += 1
        self.total += 1
        self._failed_at = time.monotonic()
        return 0.0 if self.count == 1 else min(self.longest_s, self.first_s * 2 ** (self.count - 2))

    def forget(self) -> None:
        """There was progress."""
        self.count = 0

    def forget_old(self) -> None:
        """Forgets when the last attempt lies long enough behind."""
        if self.count and time.monotonic() - self._failed_at > RECOVERED_AFTER_S:
            self.count = 0


@dataclass
class _Silence:
    """How long one process has not answered, by probes."""

    seconds: float = 0.0
    worker: Worker | None = None


@dataclass
class Supervisor:
    """Watches a fleet. tell: where events go; gave_up: why the run cannot go on, once given_up is set."""

    fleet: Fleet
    config: Config
    tell: Tell
    gave_up: CrescendoError | None = None
    given_up: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None
    _silences: dict[str, _Silence] = field(default_factory=dict)
    _repairs: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _attempts: dict[str, Attempts] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)  # losses, by the lost worker's holder
    _looked_at: float = 0.0

    def start(self) -> None:
        """Begins to watch."""
        self._looked_at = time.monotonic()
        self._task = asyncio.create_task(self._watch(), name="supervisor")

    async def stop(self) -> None:
        """Ends watching and repairs under way."""
        tasks = [task for task in (self._task, *self._repairs.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task, self._repairs = None, {}

    def attempts(self, name: str) -> Attempts:
        """The attempts at replacing what `name` says."""
        recovery = self.config.recovery
        fresh = Attempts(recovery.attempts, recovery.backoff_s, recovery.max_backoff_s)
        return self._attempts.setdefault(name, fresh)

    async def look(self) -> None:
        """Looks until it is sure of every process: it answers, or is lost. Repairs that this began are done then."""
        await self._look_at_everything()
        while any(one.seconds and one.worker and one.worker.is_ready for one in self._silences.values()):
            await asyncio.sleep(LOOK_EVERY_S)
            await self._look_at_everything()
        await asyncio.gather(*self._repairs.values(), return_exceptions=True)

    # Watching -----------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            try:
                await self._look_at_everything()
            except CrescendoError as error:
                log.warning("looking at the run's processes failed: %s", error)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look_at_everything(self) -> None:
        now = time.monotonic()
        probe_s = self.config.deadlines.heartbeat_s / PROBES_PER_HEARTBEAT
        if now - self._looked_at > 3 * probe_s:  # the controller stood still: nobody could answer it
            self._silences.clear()
        self._looked_at = now
        why = self.fleet.cluster.why_lost()
        if why:
            for worker in (*self.fleet.gang, *self.fleet.engines):
                worker.lose(why)
        ready = [worker for worker in self.fleet.workers.values() if worker.is_ready]
        await asyncio.gather(self._look_at_buffer(probe_s), *(self._look_at(worker, probe_s) for worker in ready))
        self.see_to_losses()

    async def _look_at(self, worker: Worker, probe_s: float) -> None:
        if self.fleet.is_gone(worker):
            worker.lose("its process ended")
            return
        began = time.monotonic()
        answered = await self._answers(worker, probe_s)
        if not worker.is_ready:
            return
        silence = self._silences.setdefault(worker.worker_id, _Silence())
        if answered or silence.worker is not worker:
            self._silences[worker.worker_id] = _Silence(0.0, worker)
        if answered:
            self._judge_progress(worker)
            return
        silence = self._silences[worker.worker_id]
        silence.seconds += min(time.monotonic() - began, probe_s) + LOOK_EVERY_S
        if self.fleet.is_gone(worker):
            worker.lose("its process ended")
        elif silence.seconds >= self.config.deadlines.heartbeat_s:
            worker.lose(f"it has not answered for {silence.seconds:.0f} s")

    async def _answers(self, worker: Worker, probe_s: float) -> bool:
        if worker.client is None:
            return await self.fleet.answers(worker, probe_s)
        try:
            await worker.refresh(probe_s)
        except CrescendoError as error:
            log.debug("%s does not answer: %s", worker.worker_id, error)
            return False
        return True

    def _judge_progress(self, worker: Worker) -> None:
        limit_s, status = self.config.deadlines.progress_s, worker.status
        age_s = status.progress_age_seconds
        if worker.role in ASKED_ROLES:
            age_s = min(age_s, worker.oldest_call_s)
        if age_s > limit_s and status.state not in BLAMELESS:
            worker.lose(f"it answers, but has made no progress for {age_s:.0f} s")
        elif status.state in ("failed", "broken"):
            worker.lose(f"it reports that it is {status.state}")

    def see_to_losses(self) -> None:
        """Tells of each lost worker once, whoever declared it lost, and kills what is left of it."""
        if any(rank.state == "lost" for rank in self.fleet.gang):
            for rank in self.fleet.gang:
                rank.lose(GANG_LOST)
        for worker in self.fleet.workers.values():
            if worker.state != "lost" or worker.spec.holder in self._told:
                continue
            self._told.add(worker.spec.holder)
            if worker.why_lost != GANG_LOST:
                message = f"{worker.worker_id}: {worker.why_lost}"
                self.tell("worker.lost", message, severity="warning", worker=worker.worker_id)
            self._begin(f"kill {worker.spec.holder}", partial(asyncio.to_thread, self.fleet.kill, worker))
            if worker.role in ASKED_ROLES:
                self._begin("reward", self._repair_reward)

    # Repairing ----------------------------------------------------------------------------------------

    def _begin(self, name: str, repair: Callable[[], Awaitable[None]]) -> None:
        """Starts a repair unless the same one is under way."""
        running = self._repairs.get(name)
        if running is None or running.done():
            self._repairs[name] = asyncio.ensure_future(repair())

    async def _repair_reward(self) -> None:
        await self.insist("reward", "the reward service", self.fleet.ensure_reward)

    async def start_archiver(self) -> None:
        """Starts the archiver; when that fails it is tried again, and the run goes on without."""
        try:
            await self.fleet.ensure_archiver()
        except CrescendoError as error:
            self.tell("archiver.failed", str(error), severity="warning")
            await self._repair_archiver()

    async def _repair_archiver(self) -> None:
        with contextlib.suppress(CrescendoError):  # told by then; the buffer keeps what is not archived
            await self.insist("archiver", "the archiver", self.fleet.ensure_archiver, fatal=False)

    async def _repair_buffer(self) -> None:
        await self._wait_for_room()
        await self.insist("buffer", "the embedded Valkey", self.fleet.replace_buffer)
        self._silences.pop("buffer", None)

    async def _wait_for_room(self) -> None:
        """A server that syncs each write ends when its disk is full: starting it again there only costs attempts."""
        folder, waited_s = self.fleet.folder.buffer, 0.0
        if has_room(folder):
            return
        self.tell("buffer.no_room", f"the embedded Valkey: no room on the disk of {folder}", severity="warning")
        while not has_room(folder) and waited_s < self.config.deadlines.buffer_s:
            await asyncio.sleep(LOOK_EVERY_S)
            waited_s += LOOK_EVERY_S

    async def _look_at_buffer(self, probe_s: float) -> None:
        server, repairing = self.fleet.server, self._repairs.get("buffer")
        if server is None or (repairing is not None and not repairing.done()):
            return
        began = time.monotonic()
        if await asyncio.to_thread(server.is_alive, probe_s):
            self._silences.pop("buffer", None)
            return
        silence = self._silences.setdefault("buffer", _Silence())
        silence.seconds += min(time.monotonic() - began, probe_s) + LOOK_EVERY_S
        ended = server.pid is None
        if ended or silence.seconds >= self.config.deadlines.heartbeat_s:
            reason = "its process ended" if ended else f"it has not answered for {silence.seconds:.0f} s"
            self.tell("buffer.lost", f"the embedded Valkey: {reason}", severity="warning")
            self._begin("buffer", self._repair_buffer)

    async def insist(self, name: str, what: str, replace: Callable[[], Awaitable[R]], *, fatal: bool = True) -> R:
        """Replaces until it works, or attempts are used up: then the last error is raised.

        fatal: the run cannot do without, and `gave_up` says so.
        """
        self.see_to_losses()
        attempts = self.attempts(name)
        attempts.forget_old()
        error: CrescendoError = WorkerLostError(f"{what} was lost {attempts.count} times in a row.")
        while not attempts.exhausted:
            await asyncio.sleep(attempts.next_wait_s())
            begun = time.monotonic()
            self.tell(f"{name}.replacing", f"{what}: attempt {attempts.count}", attempt=attempts.count)
            try:
                replaced = await replace()
            except CrescendoError as failure:
                error = failure
                self.tell(f"{name}.replace_failed", f"{what}: {error}", severity="warning", attempt=attempts.count)
            else:
                seconds = time.monotonic() - begun
                self.tell("worker.replaced", f"{what} is back after {seconds:.1f} s", worker=name, seconds=seconds)
                return replaced
        self.tell(f"{name}.given_up", f"{what}: given up after {attempts.count} attempts", severity="error")
        if fatal:
            self.gave_up = error
            self.given_up.set()
        raise error

    def progressed(self) -> None:
        """The run got further: what was replaced on the way does well."""
        for attempts in self._attempts.values():
            attempts.forget()


def has_room(folder: Path) -> bool:
    """Whether the folder's disk takes a server's next writes."""
    return shutil.disk_usage(folder).free > ROOM_BYTES
