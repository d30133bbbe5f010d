"""A rollout phase: this engine claims trajectories, generates, and flushes, until it is paused.

    claim loop    buffer.claim ---> Flight ---> engine.submit          waits for: room, work in the buffer
    on_outputs    engine step  ---> Flight.take                        (event loop callback, never waits)
    flush loop    Flight.update --> buffer.flush                       waits for: news, or the flush interval

RolloutService makes one phase a Begin and ends it with Pause. At most one claim and one flush are under way;
what ends meanwhile goes with the next flush, so round trips are shared by many trajectories. While the buffer
cannot be reached, tokens stay here and the phase says so (`trouble`). A lease that was lost ends its flight.
A newer controller's fence ends the phase: the buffer refuses ours, and the new controller takes back all leases.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from crescendo.buffer.protocol import Claim, ExperienceBuffer, Update
from crescendo.common import errors, failpoints
from crescendo.common.errors import CrescendoError, DeadlineError, RequestError, StaleFenceError
from crescendo.common.types import TrajectoryState
from crescendo.proto.v1 import common_pb2, rollout_pb2
from crescendo.rollout.engine.base import EngineOutput, Output
from crescendo.rollout.engine.thread import EngineThread
from crescendo.rollout.flight import Flight
from crescendo.rollout.watch import Decode

log = logging.getLogger(__name__)

R = TypeVar("R")

CLAIM_WAIT_S = 0.1  # longest wait on the buffer's wake-up; a Pause waits for it at most
BUSY_CLAIM_INTERVAL_S = 0.5  # between claims while others run here and the last claim found nothing
FLUSH_INTERVAL_S = 0.02  # least time between two flushes: round trips shared by what ends meanwhile
EARLY = 4  # a flush starts when a quarter of flush_tokens is left: it takes a while, and no more than they may be lost
FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 5.0
RENEWALS_PER_LEASE = 3


class RolloutPhase:
    """One phase, from Begin to Pause. A sink of the engine thread. Lives on one event loop."""

    def __init__(
        self,
        engine: EngineThread,
        buffer: ExperienceBuffer,
        worker_id: str,
        begin: rollout_pb2.BeginRequest,
        *,
        decode: Decode | None = None,
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        """on_trouble: told what is wrong when the buffer stops answering, and "" when it answers again."""
        self.begin = begin
        self.trouble = ""
        self.refused = False  # the trouble is that the buffer refuses writes
        self.error: CrescendoError | None = None
        self._flush_from = begin.flush_tokens - begin.flush_tokens // EARLY or float("inf")
        self._engine = engine
        self._buffer = buffer
        self._worker_id = worker_id
        self._decode = decode
        self._on_trouble = on_trouble
        self._flights: dict[str, Flight] = {}  # by trajectory id, until their last flush
        self._by_request: dict[str, Flight] = {}  # by request id, while the engine runs them
        self._num_launched = 0
        self._progress = rollout_pb2.RolloutProgress()
        self._started_s = self._last_token_s = time.monotonic()
        self._stopping = False
        self._nothing_to_claim = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # What the service calls --------------------------------------------------------------------------

    def start(self) -> None:
        """Starts claiming."""
        self._tasks = [asyncio.create_task(self._claim_loop()), asyncio.create_task(self._flush_loop())]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)

    async def pause(self, deadline_s: float) -> None:
        """Parks what is unfinished and flushes everything; calling it again goes on where it stopped.

        Raises DeadlineError when the buffer did not take everything in time: the tokens stay here, and
        flushing goes on.
        """
        self._stop_claiming()
        claiming, flushing = self._tasks
        try:
            async with asyncio.timeout(deadline_s):
                running = [one for one in self._flights.values() if not one.landed]
                if running and self._engine.failure is None:
                    await self._engine.drain([one.request_id for one in running], deadline_s)
                self._park(running)
                await asyncio.shield(claiming)
                self._news.set()
                await asyncio.shield(flushing)
        except TimeoutError:
            raise DeadlineError(
                f"pausing took longer than {deadline_s:.1f} s: {len(self._flights)} trajectories are not flushed yet"
                f"{'; ' + self.trouble if self.trouble else ''}.",
                field="deadlines.pause_s",
                fix="Pause again when the buffer answers; their tokens are kept until then.",
            ) from None

    def abort(self, trajectory_ids: Sequence[str]) -> int:
        """Ends trajectories for good; returns how many ran here."""
        named = [self._flights[one] for one in trajectory_ids if one in self._flights]
        running = [flight for flight in named if not flight.landed]
        self._engine.forget([flight.request_id for flight in running])
        for flight in running:
            flight.abort()
            self._landed(flight)
        return len(running)

    async def close(self) -> None:
        """Drops everything at once: the leases belong to a newer controller, or the process ends."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._forget_all()

    @property
    def progress(self) -> rollout_pb2.RolloutProgress:
        """Counts since Begin."""
        elapsed_s = max(1e-3, self._last_token_s - self._started_s)
        progress = rollout_pb2.RolloutProgress()
        progress.CopyFrom(self._progress)
        progress.num_running = len(self._by_request)
        progress.num_unflushed = sum(flight.num_unflushed for flight in self._flights.values())
        progress.tokens_per_second = progress.num_tokens / elapsed_s
        progress.drained = self._nothing_to_claim and not self._flights and not self.trouble
        return progress

    # Sink of the engine thread -----------------------------------------------------------------------

    def on_outputs(self, outputs: Sequence[Output]) -> None:
        """One engine step's tokens."""
        due = self._flush_from
        overrun: list[str] = []
        for output in outputs:
            flight = self._by_request.get(output.request_id)
            if flight is None or not isinstance(output, EngineOutput):
                continue
            before = flight.num_tokens
            if flight.take(output.token_ids, output.log_probs, output.finish_reason):
                overrun.append(flight.request_id)
            self._progress.num_tokens += flight.num_tokens - before
            if flight.landed:
                self._landed(flight)
            elif flight.num_unflushed >= due:
                self._news.set()
        if overrun:
            self._engine.forget(overrun)
        self._last_token_s = time.monotonic()
        failpoints.reach("engine.stepped", self._unflushed)

    def _unflushed(self) -> dict[str, int]:
        """Tokens by trajectory that only this process has."""
        return {flight.trajectory_id: flight.num_unflushed for flight in self._flights.values()}

    def on_failure(self, error: CrescendoError) -> None:
        """The engine died: what it generated is parked, for another engine to go on with."""
        self.error = error
        self._stop_claiming()
        self._park(list(self._flights.values()))

    # Claiming ----------------------------------------------------------------------------------------

    async def _claim_loop(self) -> None:
        while not self._stopping:
            free = min(
                self.begin.max_concurrency - len(self._by_request), 2 * self.begin.max_concurrency - len(self._flights)
            )
            if free <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            asked_s = time.monotonic()
            claims = await self._insist(self._claim, free, while_stopping=False)
            if claims is None:
                return
            self._nothing_to_claim = not claims
            self._launch(claims)
            if not claims and self._by_request and not self._stopping:
                await self._wait_until_idle(BUSY_CLAIM_INTERVAL_S)
            elif not claims and time.monotonic() - asked_s < CLAIM_WAIT_S / 2:
                await asyncio.sleep(CLAIM_WAIT_S / 2)

    async def _wait_until_idle(self, timeout_s: float) -> None:
        """Returns when nothing runs here any more or the phase ends, or after timeout_s."""
        self._idle.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return

    async def _claim(self, limit: int) -> list[Claim]:
        begin = self.begin
        return await self._buffer.claim(
            begin.fence,
            self._worker_id,
            limit=limit,
            lease_s=begin.lease_seconds,
            iteration=begin.iteration,
            max_spans=begin.max_spans,
            wait_s=CLAIM_WAIT_S,
        )

    def _launch(self, claims: Sequence[Claim]) -> None:
        if claims:
            failpoints.reach("engine.claimed")
        now_s = time.monotonic()
        requests = []
        for claim in claims:
            self._num_launched += 1
            flight = Flight(
                claim,
                self.begin,
                # Unique, so that late outputs of an earlier lease of the same trajectory are not taken for ours.
                request_id=f"{claim.trajectory.trajectory_id}#{self._num_launched}",
                max_sequence_tokens=self._engine.max_sequence_tokens,
                decode=self._decode,
                now_s=now_s,
                worker_id=self._worker_id,
            )
            self._drop(flight.trajectory_id)  # an expired lease that came back to us
            self._flights[flight.trajectory_id] = flight
            self._by_request[flight.request_id] = flight
            if self._stopping:
                flight.park()
            elif flight.max_tokens <= 0:
                flight.land_at_limit()
            else:
                requests.append(flight.request())
            if flight.landed:
                self._landed(flight)
        if requests:
            try:
                self._engine.submit(requests, self)
            except CrescendoError as error:
                self.on_failure(error)

    # Flushing ----------------------------------------------------------------------------------------

    async def _flush_loop(self) -> None:
        tick_s = min(
            self.begin.flush_seconds or self.begin.lease_seconds, self.begin.lease_seconds / RENEWALS_PER_LEASE
        )
        claiming = self._tasks[0]
        while self._flights or not (self._stopping and claiming.done()):
            try:
                async with asyncio.timeout(tick_s):
                    await self._news.wait()
            except TimeoutError:
                pass  # time to renew leases and to flush what has waited long enough
            self._news.clear()
            batch = self._due(time.monotonic(), tick_s)
            if batch:
                await self._flush(batch)
            if not self._stopping:
                await asyncio.sleep(FLUSH_INTERVAL_S)

    def _due(self, now_s: float, tick_s: float) -> list[Flight]:
        return [
            one
            for one in self._flights.values()
            if one.landed or one.num_unflushed >= self._flush_from or now_s - one.flushed_at_s >= tick_s * 0.9
        ]

    async def _flush(self, batch: Sequence[Flight]) -> None:
        bad = [one for one in batch if one.state == TrajectoryState.DROPPED]
        for flight in bad:
            await self._set_aside(flight, "non_finite_log_prob")
        pairs = [(one, one.update()) for one in batch if one.state != TrajectoryState.DROPPED]
        if not pairs:
            return
        try:
            lost = await self._insist(self._send, [update for _, update in pairs])
        except RequestError as error:
            if len(pairs) == 1:
                log.error("the buffer cannot take trajectory %s: %s", pairs[0][0].trajectory_id, error)
                await self._set_aside(pairs[0][0], "refused_by_buffer")
            else:
                for flight, _ in pairs:
                    await self._flush([flight])
            return
        if lost is None:
            return
        failpoints.reach("engine.flushed", self._unflushed)
        now_s = time.monotonic()
        for flight, update in pairs:
            flight.flushed(update, now_s)
            if update.state != TrajectoryState.LEASED and self._flights.get(flight.trajectory_id) is flight:
                del self._flights[flight.trajectory_id]
        for one in lost:
            log.warning("the lease of trajectory %s was lost; dropping it here", one)
            self._drop(one)
        self._room.set()

    async def _send(self, updates: Sequence[Update]) -> list[str]:
        return [str(one) for one in await self._buffer.flush(self.begin.fence, self._worker_id, updates)]

    async def _set_aside(self, flight: Flight, reason: str) -> None:
        async def drop(flight: Flight) -> bool:
            await self._buffer.drop_trajectory(self.begin.fence, flight.trajectory_id, reason)
            return True

        log.error("trajectory %s is set aside: %s", flight.trajectory_id, reason)
        await self._insist(drop, flight)
        self._drop(flight.trajectory_id)

    # Common ------------------------------------------------------------------------------------------

    async def _insist(
        self, act: Callable[..., Awaitable[R]], argument: object, *, while_stopping: bool = True
    ) -> R | None:
        """Tries until the buffer answers; None when the phase is over instead. Raises RequestError."""
        backoff_s = FIRST_BACKOFF_S
        while while_stopping or not self._stopping:
            try:
                result = await act(argument)
            except StaleFenceError as error:
                self._superseded(error)
                return None
            except RequestError:
                raise
            except Exception as error:  # whatever a client library raises: the buffer did not answer
                if not self.trouble:
                    log.warning("the buffer does not answer; tokens are kept here", exc_info=True)
                self.refused = isinstance(error, errors.BufferRefusedError)
                self._set_trouble(f"the buffer does not take it: {type(error).__name__}: {error}")
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)
            else:
                self._set_trouble("")
                return result
        return None

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or task.exception() is None:
            return
        log.error("the rollout phase broke", exc_info=task.exception())
        self.error = errors.InternalError(f"the rollout phase broke: {task.exception()!r}")
        self._stop_claiming()
        self._set_trouble(str(self.error))

    def _set_trouble(self, trouble: str) -> None:
        if trouble != self.trouble and self._on_trouble is not None:
            self._on_trouble(trouble)
        self.trouble = trouble

    def _superseded(self, error: StaleFenceError) -> None:
        log.warning("a newer controller took over; this phase ends: %s", error)
        self.error = error
        self._stop_claiming()
        self._news.set()
        self._forget_all()

    def _stop_claiming(self) -> None:
        self._stopping = True
        self._idle.set()
        self._room.set()

    def _forget_all(self) -> None:
        for one in list(self._flights):
            self._drop(one)

    def _drop(self, trajectory_id: str) -> None:
        flight = self._flights.pop(trajectory_id, None)
        if flight is not None and self._by_request.pop(flight.request_id, None) is not None:
            self._engine.forget([flight.request_id])
        if not self._by_request:
            self._idle.set()
        self._room.set()

    def _park(self, flights: Sequence[Flight]) -> None:
        for flight in [one for one in flights if not one.landed]:
            flight.park()
            self._landed(flight)

    def _landed(self, flight: Flight) -> None:
        self._by_request.pop(flight.request_id, None)
        if not self._by_request:
            self._idle.set()
        self._progress.num_finished += flight.state == TrajectoryState.FINISHED
        self._progress.num_parked += flight.state == TrajectoryState.PARKED
        self._progress.num_repeats += flight.finish_reason == common_pb2.FINISH_REASON_REPEAT
        self._room.set()
        self._news.set()
