"""The worker pool: a queue, workers kept fed with small chunks, and the rules of who pays when one ends.

    deadline passed      the item at hand gets VERDICT_TIMEOUT        killed, replaced, the rest is sent again
    crashed by the item  VERDICT_SANDBOX_ERROR                        likewise
    killed from outside  a retryable fault, no score                  likewise
    nobody waits for it  -                                            killed soon, replaced, the rest is sent again
    N items answered     -                                            recycled
    ran out of memory    VERDICT_SANDBOX_ERROR (the worker says so)   recycled at once

A `fresh` item gets a worker of its own, which has graded nothing before and nothing after. Runs on one event
loop; whatever talks to the zygote runs in the pool's own tasks, never in a caller's that may be cancelled.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from crescendo.common.errors import CrescendoError, OverloadError, WorkerLostError, WorkerStartError
from crescendo.proto.v1 import common_pb2, reward_pb2
from crescendo.reward_service.scorers import SANDBOX_SCORERS
from crescendo.reward_service.workers.fork_server import ForkServer
from crescendo.reward_service.workers.handle import WorkerHandle
from crescendo.reward_service.workers.tasks import Batch, Step, Task, charge

log = logging.getLogger(__name__)

MAX_CHUNK_ITEMS = 64
MAX_CHUNK_BYTES = 4 << 20
START_S = 120.0
PROBE_S = 30.0
MAX_BACKOFF_S = 5.0
OVERLOAD_RETRY_S = 1.0


# An item, and for its links that had programs run, what became of them.
Asked: TypeAlias = tuple[reward_pb2.ScoreItem, Sequence[reward_pb2.LinkRuns]]


@dataclass
class PoolCounters:
    """What happened since the start."""

    num_answered: int = 0
    num_killed: int = 0
    num_recycled: int = 0
    num_lost: int = 0
    progress_s: float = 0.0  # monotonic time of the last answer


class Pool:
    """`await Pool(...).start()`, then `await pool.grade(items, deadline_s)`, and `await pool.close()` at the end.

    num_workers: processes; memory_bytes: address space of each above its start; recycle_after: items a worker
    grades before it is replaced; modules: what the zygote imports; max_queued: items waiting, beyond which
    `grade` raises OverloadError.
    """

    def __init__(
        self, num_workers: int, memory_bytes: int, recycle_after: int, modules: Sequence[str], max_queued: int
    ) -> None:
        self.counters = PoolCounters(progress_s=time.monotonic())
        self._num_workers = num_workers
        self._memory_bytes = memory_bytes
        self._recycle_after = recycle_after
        self._modules = tuple(modules)
        self._max_queued = max_queued
        self._queue: deque[Task] = deque()
        self._fresh_queue: deque[Task] = deque()
        self._workers: set[WorkerHandle] = set()
        self._single_workers: set[WorkerHandle] = set()
        self._num_single = 0  # single workers living or being forked
        self._server: ForkServer | None = None
        self._server_lock = asyncio.Lock()
        self._own_tasks: set[asyncio.Task[None]] = set()
        self._sequence = 0
        self._num_failed_starts = 0
        self._is_closing = False

    @property
    def num_workers(self) -> int:
        """Workers that are alive."""
        return len(self._workers)

    @property
    def num_queued(self) -> int:
        """Items that wait for a worker."""
        return len(self._queue) + len(self._fresh_queue)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers, for tests and status."""
        return [worker.pid for worker in self._workers | self._single_workers]

    @property
    def zygote_pid(self) -> int:
        """Process id of the zygote; 0 before the start."""
        return self._server.pid if self._server else 0

    @property
    def has_network(self) -> bool:
        """Whether workers still share the machine's network, because namespaces are not permitted."""
        return self._server is None or self._server.has_network

    async def start(self) -> "Pool":
        """Starts the zygote and the workers, and grades a probe; raises WorkerStartError."""
        try:
            await self._zygote()
            await asyncio.gather(*(self._add_worker() for _ in range(self._num_workers)))
            await self._probe()
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Kills everything; items without an answer get a retryable fault."""
        self._is_closing = True
        for task in list(self._own_tasks):
            task.cancel()
        await asyncio.gather(*self._own_tasks, return_exceptions=True)
        for worker in self._workers | self._single_workers:
            worker.kill()
            self._lose_all(worker.in_flight)
            await self._bury(worker, None, 0.0)
        self._lose_all(self._queue)
        self._lose_all(self._fresh_queue)
        self._workers.clear()
        self._single_workers.clear()
        if self._server is not None:
            await self._server.close()

    async def grade(
        self, items: Sequence[reward_pb2.ScoreItem], deadline_s: float, *, fresh: bool = False
    ) -> list[reward_pb2.ScoreResult]:
        """Results of items, in order. deadline_s: wall-clock limit of each. Raises OverloadError when full."""
        return [step.result for step in await self.take([(item, ()) for item in items], deadline_s, fresh=fresh)]

    async def take(self, asked: Sequence[Asked], deadline_s: float, *, fresh: bool = False) -> list[Step]:
        """As `grade`, for items of which some links had programs run already."""
        if self._is_closing:
            raise WorkerLostError("the executor is stopping.")
        if self.num_queued + len(asked) > self._max_queued:
            raise OverloadError(
                f"the executor's queue holds {self.num_queued} items; its limit is {self._max_queued}.",
                retry_after_s=OVERLOAD_RETRY_S,
            )
        batch = Batch(len(asked))
        if not asked:
            return []
        queue = self._fresh_queue if fresh else self._queue
        queue.extend(self._task(one, deadline_s, batch, index) for index, one in enumerate(asked))
        self._feed_all()
        try:
            await batch.done
        except asyncio.CancelledError:
            for worker in self._workers | self._single_workers:
                worker.hurry()
            raise
        return [step for step in batch.steps if step is not None]

    # What handles report (the Owner protocol).

    def answered(self, handle: WorkerHandle, task: Task, answer: reward_pb2.WorkerAnswer) -> None:
        """A worker has answered: the result goes to its batch, and the worker gets more or is replaced."""
        if not answer.HasField("fault") and not _fits(answer, task.item.chain):
            handle.in_flight.appendleft(task)
            return self.broke_protocol(handle, "an answer does not fit its chain")
        self.counters.num_answered += 1
        self.counters.progress_s = time.monotonic()
        fault = answer.fault if answer.HasField("fault") else None
        task.settle(answer.components, fault, answer.seconds, answer.needed)
        is_worn = handle.num_answered >= self._recycle_after
        if handle.is_single:
            self._discard(handle)
        elif answer.retire or is_worn:
            self.counters.num_recycled += 1
            self._discard(handle)
        else:
            self._feed(handle)
        return None

    def expired(self, handle: WorkerHandle) -> None:
        """The item at hand passed its deadline: it alone is charged."""
        task = handle.in_flight.popleft()
        self.counters.num_killed += 1
        task.condemn(common_pb2.VERDICT_TIMEOUT, f"no answer within {task.deadline_s:g} s", handle.item_seconds)
        self._discard(handle)

    def broke_protocol(self, handle: WorkerHandle, reason: str) -> None:
        """A worker that says the wrong thing is killed; the item at hand is charged."""
        log.error("worker %d broke the protocol: %s", handle.pid, reason)
        self.counters.num_killed += 1
        if handle.in_flight:
            task = handle.in_flight.popleft()
            task.condemn(common_pb2.VERDICT_SANDBOX_ERROR, "the worker broke its protocol", handle.item_seconds)
        self._discard(handle)

    def ended(self, handle: WorkerHandle) -> None:
        """A worker ended by itself or was killed by somebody else: its exit status tells who pays."""
        self.counters.num_lost += 1
        task = handle.in_flight.popleft() if handle.in_flight else None
        self._discard(handle, charged=task)

    # Feeding.

    def _task(self, asked: Asked, deadline_s: float, batch: Batch, index: int) -> Task:
        self._sequence += 1
        item, ended = asked
        message = reward_pb2.WorkerTask(sequence=self._sequence, item=item, deadline_seconds=deadline_s, ended=ended)
        return Task(self._sequence, item, deadline_s, batch, index, message.SerializeToString())

    def _feed_all(self) -> None:
        for worker in self._workers:
            self._feed(worker)
        while self._fresh_queue and self._num_single < self._num_workers:
            task = self._fresh_queue.popleft()
            if not task.batch.is_abandoned:
                self._num_single += 1
                self._spawn(self._grade_alone(task))

    def _feed(self, worker: WorkerHandle) -> None:
        """Tops a worker up when it runs low: chunks shrink with the queue, so that the last items are spread."""
        window = min(MAX_CHUNK_ITEMS, 1 + len(self._queue) // max(1, len(self._workers)))
        if worker.is_dead or len(worker.in_flight) > window // 2:
            return
        room = min(window - len(worker.in_flight), self._recycle_after - worker.num_sent)
        room_bytes = MAX_CHUNK_BYTES - worker.bytes_in_flight
        chunk: list[Task] = []
        while self._queue and len(chunk) < room and (room_bytes > 0 or not (chunk or worker.in_flight)):
            task = self._queue.popleft()
            if not task.batch.is_abandoned:
                chunk.append(task)
                room_bytes -= len(task.payload)
        worker.send(chunk)

    async def _grade_alone(self, task: Task) -> None:
        worker: WorkerHandle | None = None
        reason = "the executor is stopping."
        try:
            worker = await self._fork(is_single=True)
        except CrescendoError as error:
            reason = f"no worker could be forked: {error.message}"
        finally:
            if worker is None:  # also when cancelled
                self._num_single -= 1
                task.lose(reason)
        if worker is not None:
            self._single_workers.add(worker)
            worker.send([task])

    # Making and ending workers.

    def _discard(self, worker: WorkerHandle, charged: Task | None = None) -> None:
        """Kills a worker, sends what it had in flight again, and has it reaped and replaced."""
        worker.kill()
        self._workers.discard(worker)
        self._single_workers.discard(worker)
        rest = [task for task in worker.in_flight if not task.batch.is_abandoned]
        worker.in_flight.clear()
        self._queue.extendleft(reversed(rest))
        if self._is_closing:
            if charged is not None:
                charged.lose("the executor is stopping.")
            return
        self._spawn(self._bury_and_replace(worker, charged, worker.item_seconds))
        for other in self._workers:
            self._feed(other)

    async def _bury_and_replace(self, worker: WorkerHandle, charged: Task | None, seconds: float) -> None:
        if worker.is_single:
            self._num_single -= 1
            self._feed_all()
            await self._bury(worker, charged, seconds)
        else:
            await asyncio.gather(self._replace(worker), self._bury(worker, charged, seconds))

    async def _bury(self, worker: WorkerHandle, charged: Task | None, seconds: float) -> None:
        status = -1
        try:
            if self._server is not None:
                status = await self._server.reap(worker.pid)
        except WorkerLostError as error:
            log.warning("exit status of worker %d is not known: %s", worker.pid, error.message)
        finally:
            if charged is not None:
                charge(charged, status, seconds)

    async def _replace(self, worker: WorkerHandle) -> None:
        if worker.num_answered:
            self._num_failed_starts = 0
        else:
            # A worker that dies before its first answer may do so again at once; don't spin.
            await asyncio.sleep(min(MAX_BACKOFF_S, 0.01 * 2 ** min(10, self._num_failed_starts)))
            self._num_failed_starts += 1
        while not self._is_closing:
            try:
                await self._add_worker()
                return
            except CrescendoError as error:
                log.error("no replacement for worker %d: %s", worker.pid, error)
                await asyncio.sleep(MAX_BACKOFF_S)

    async def _add_worker(self) -> None:
        worker = await self._fork(is_single=False)
        self._workers.add(worker)
        self._feed(worker)

    async def _fork(self, *, is_single: bool) -> WorkerHandle:
        server = await self._zygote()
        try:
            pid, sock = await server.fork()
        except WorkerLostError:
            await self._drop_zygote(server)
            server = await self._zygote()
            pid, sock = await server.fork()
        handle = WorkerHandle(pid, self, is_single=is_single)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: handle, sock)
        return handle

    async def _zygote(self) -> ForkServer:
        async with self._server_lock:
            if self._server is None:
                self._server = await ForkServer.start(self._modules, self._memory_bytes, START_S)
            return self._server

    async def _drop_zygote(self, broken: ForkServer) -> None:
        async with self._server_lock:
            if self._server is broken:
                log.error("the zygote %d is lost; a new one is started", broken.pid)
                self._server = None
                await broken.close()

    async def _probe(self) -> None:
        spec = reward_pb2.ScorerSpec(name="exact_match", weight=1.0)
        item = reward_pb2.ScoreItem(item_id="probe", response=b"1", gold_answers=["1"], chain=[spec])
        (result,) = await self.grade([item], PROBE_S)
        if result.HasField("fault") or result.components[0].verdict != common_pb2.VERDICT_CORRECT:
            raise WorkerStartError(f"a worker could not grade the probe: {result.fault.message or result}")

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._own_tasks.add(task)
        task.add_done_callback(self._own_tasks.discard)

    @staticmethod
    def _lose_all(tasks: deque[Task]) -> None:
        for task in tasks:
            task.lose("the executor is stopping.")
        tasks.clear()


def _fits(answer: reward_pb2.WorkerAnswer, chain: Sequence[reward_pb2.ScorerSpec]) -> bool:
    """Whether an answer has a component a link, and needs programs only for links that may."""
    return len(answer.components) == len(chain) and all(
        0 <= runs.link < len(chain) and chain[runs.link].name in SANDBOX_SCORERS for runs in answer.needed
    )
