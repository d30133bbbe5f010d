"""The thread that owns an engine, and the event loop's side of it.

    event loop                                   engine thread
    ----------                                   -------------
    submit, forget, call  --- commands --->      run commands between steps, in order
    sinks of requests     <-- one message a ---  step while there is work and nobody holds it
                              step

The loop is never blocked: it queues commands and gets one message a step (`call_soon_threadsafe`), which it
routes to the sinks of the requests. The thread lives from `start` to `stop`. When a step raises, the engine
is dead: every sink and every caller is told with WorkerLostError, and so is whoever asks later.
"""

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from crescendo.common.errors import CrescendoError, DeadlineError, WorkerLostError, WorkerStartError
from crescendo.common.types import FloatArray
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.base import Engine, EngineOutput, EngineRequest, Output, ScoreOutput

log = logging.getLogger(__name__)

R = TypeVar("R")

IDLE_WAIT_S = 1.0  # how often an idle thread looks whether the process wants to end
ENDED = common_pb2.FINISH_REASON_UNSPECIFIED


class Sink(Protocol):
    """Whoever submitted requests. Both methods run on the event loop and must not block."""

    def on_outputs(self, outputs: Sequence[Output]) -> None:
        """One step's news of this sink's requests."""
        ...

    def on_failure(self, error: CrescendoError) -> None:
        """The engine died; no further output comes."""
        ...


class _Scores:
    """The sink of scoring requests: resolves when every sequence has its log-probabilities."""

    def __init__(self, ids: Sequence[str], future: "asyncio.Future[list[FloatArray]]") -> None:
        self._ids = ids
        self._future = future
        self._scores: dict[str, FloatArray] = {}

    def on_outputs(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            if isinstance(output, ScoreOutput):
                self._scores[output.request_id] = output.log_probs
            elif not self._future.done():
                self._future.set_exception(WorkerLostError("the engine ended a scoring request without scores."))
        if len(self._scores) == len(self._ids) and not self._future.done():
            self._future.set_result([self._scores[one] for one in self._ids])

    def on_failure(self, error: CrescendoError) -> None:
        if not self._future.done():
            self._future.set_exception(error)


class EngineThread:
    """An engine on its own thread; every method is called on the event loop that called `start`."""

    def __init__(self, make: Callable[[], Engine], *, lockstep: bool = False) -> None:
        """lockstep: a step waits until sinks have dealt with the one before, so what they end is not in it."""
        self._make = make
        self._lockstep = lockstep
        self._delivered = threading.Event()
        self.on_failure: Callable[[CrescendoError], None] | None = None
        self._commands: queue.SimpleQueue[Callable[[Engine], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._routes: dict[str, Sink] = {}
        self._calls: set[asyncio.Future[Any]] = set()
        self._score_ids = itertools.count()
        self._held = False
        self._stopping = False
        self._last_step_s = time.monotonic()
        self.failure: CrescendoError | None = None
        self.max_sequence_tokens = 0

    async def start(self, deadline_s: float) -> None:
        """Builds the engine on the thread; raises WorkerStartError when that fails or takes too long."""
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        try:
            async with asyncio.timeout(deadline_s):
                await self._ready
        except TimeoutError:
            raise WorkerStartError(
                f"the engine was not ready after {deadline_s:.0f} s.", field="deadlines.start_s", fix="Raise it."
            ) from None

    async def stop(self, deadline_s: float = 30.0) -> None:
        """Ends the engine and its thread; gives up waiting after the deadline."""
        self._stopping = True
        self._commands.put(lambda _engine: None)
        await asyncio.to_thread(self._thread.join, deadline_s)
        if self._thread.is_alive():
            log.error("the engine thread did not end within %.0f s", deadline_s)

    # Requests ----------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[EngineRequest], sink: Sink) -> None:
        """Hands requests over; their outputs go to the sink. Raises WorkerLostError when the engine is dead."""
        self._check_alive()
        self._begin_waiting()
        for request in requests:
            self._routes[request.request_id] = sink
        self._commands.put(lambda engine: self._add(engine, requests))

    def forget(self, request_ids: Sequence[str]) -> None:
        """Ends requests at once; outputs still on their way are dropped."""
        for one in request_ids:
            self._routes.pop(one, None)
        self._commands.put(lambda engine: engine.abort(request_ids))

    async def drain(self, request_ids: Sequence[str], deadline_s: float) -> None:
        """Ends requests; when this returns, all that was generated for them has reached their sinks."""
        try:
            await self.call(lambda engine: engine.abort(request_ids), deadline_s)
        finally:
            for one in request_ids:
                self._routes.pop(one, None)

    async def score(self, sequences: Sequence[Sequence[int]], deadline_s: float) -> list[FloatArray]:
        """Log-probabilities of each sequence from its second token on."""
        self._check_alive()
        if not sequences:
            return []
        ids = [f"score-{next(self._score_ids)}" for _ in sequences]
        future: asyncio.Future[list[FloatArray]] = self._loop.create_future()
        sink = _Scores(ids, future)
        self._begin_waiting()
        for one in ids:
            self._routes[one] = sink
        pairs = list(zip(ids, sequences, strict=True))
        try:
            await self.call(lambda engine: _add_scores(engine, pairs), deadline_s)
            async with asyncio.timeout(deadline_s):
                return await future
        except TimeoutError:
            raise DeadlineError(f"scoring {len(ids)} sequences took longer than {deadline_s:.0f} s.") from None
        finally:
            future.cancel()
            self.forget([one for one in ids if one in self._routes])

    async def call(self, act: Callable[[Engine], R], deadline_s: float) -> R:
        """Runs `act` on the engine's thread between two steps and returns its result or raises its error."""
        self._check_alive()
        future: asyncio.Future[R] = self._loop.create_future()
        self._calls.add(future)

        def command(engine: Engine) -> None:
            try:
                result = act(engine)
            except Exception as error:  # noqa: BLE001 - it is raised again where the caller waits
                self._post(_set_exception, future, error)
            else:
                self._post(_set_result, future, result)

        self._commands.put(command)
        try:
            async with asyncio.timeout(deadline_s):
                return await future
        except TimeoutError:
            raise DeadlineError(f"the engine did not answer within {deadline_s:.0f} s.") from None
        finally:
            self._calls.discard(future)

    # The device --------------------------------------------------------------------------------------

    def hold(self) -> None:
        """No steps until `proceed`: the engine's cores are somebody else's. Commands still run."""
        self._held = True

    def proceed(self) -> None:
        """Ends `hold`."""
        self._last_step_s = time.monotonic()
        self._held = False
        self._commands.put(lambda _engine: None)

    @property
    def progress_age_s(self) -> float:
        """Seconds since the last step while requests wait for one; 0 when nothing is due."""
        return time.monotonic() - self._last_step_s if self._routes and not self._held else 0.0

    def _begin_waiting(self) -> None:
        """Time in which nobody waited for a step does not count as time without one."""
        if not self._routes:
            self._last_step_s = time.monotonic()

    # The thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            engine = self._make()
        except Exception as error:
            log.exception("the engine did not start")
            typed = error if isinstance(error, CrescendoError) else _start_error(error)
            self._post(_set_exception, self._ready, typed)
            return
        self.max_sequence_tokens = engine.max_sequence_tokens
        self._post(_set_result, self._ready, None)
        try:
            while not self._stopping:
                self._run_commands(engine, wait=self._held or not engine.has_work)
                if engine.has_work and not self._held and not self._stopping:
                    outputs = engine.step()
                    self._last_step_s = time.monotonic()
                    if outputs:
                        self._post(self._deliver, outputs)
                    if self._lockstep:
                        self._wait_for_delivery()
        except Exception as error:
            log.exception("the engine died")
            self._post(self._fail, WorkerLostError(f"the engine died: {type(error).__name__}: {error}"))
        finally:
            engine.close()

    def _run_commands(self, engine: Engine, *, wait: bool) -> None:
        try:
            command = self._commands.get(timeout=IDLE_WAIT_S) if wait else self._commands.get_nowait()
            self._last_step_s = time.monotonic()
            while True:
                command(engine)
                command = self._commands.get_nowait()
        except queue.Empty:
            return

    def _wait_for_delivery(self) -> None:
        self._delivered.clear()
        self._post(self._delivered.set)
        while not self._delivered.wait(IDLE_WAIT_S) and not self._stopping:
            pass  # the event loop is busy; without it nothing would come of a further step

    def _add(self, engine: Engine, requests: Sequence[EngineRequest]) -> None:
        refused: list[Output] = []
        for request in requests:
            try:
                engine.add(request)
            except CrescendoError as error:
                log.error("the engine refused request %s: %s", request.request_id, error)
                refused.append(EngineOutput(request.request_id, [], [], common_pb2.FINISH_REASON_ABORTED))
        if refused:
            self._post(self._deliver, refused)

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.warning("the event loop ended before the engine did")
            self._stopping = True

    # On the event loop -------------------------------------------------------------------------------

    def _deliver(self, outputs: Sequence[Output]) -> None:
        routes = self._routes
        batches: dict[Sink, list[Output]] = {}
        for output in outputs:
            sink = routes.get(output.request_id)
            if sink is None:
                continue
            batches.setdefault(sink, []).append(output)
            if isinstance(output, ScoreOutput) or output.finish_reason != ENDED:
                del routes[output.request_id]
        for sink, batch in batches.items():
            sink.on_outputs(batch)

    def _fail(self, error: CrescendoError) -> None:
        self.failure = error
        sinks = set(self._routes.values())
        self._routes.clear()
        for sink in sinks:
            sink.on_failure(error)
        for future in self._calls:
            _set_exception(future, error)
        if self.on_failure is not None:
            self.on_failure(error)

    def _check_alive(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self._stopping:
            raise WorkerLostError("the engine has been stopped.")


def _add_scores(engine: Engine, pairs: Sequence[tuple[str, Sequence[int]]]) -> None:
    for request_id, token_ids in pairs:
        engine.add_score(request_id, token_ids)


def _start_error(error: Exception) -> WorkerStartError:
    return WorkerStartError(
        f"the engine did not start: {type(error).__name__}: {error}",
        fix="See the worker's log in the run folder; `crescendo doctor` checks memory and versions.",
    )


def _set_result(future: "asyncio.Future[Any]", result: object) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
