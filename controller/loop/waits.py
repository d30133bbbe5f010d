"""Waits that people can see, and that end.

    Pulse      no silence: an event whenever nothing was told for TELL_EVERY_S, whatever the run waits for
    Patience   a buffer or a checkpoint store that cannot be reached or refuses, or a full disk, stops the run, not
               its work: it stands still with the reason as its status, tries again, and goes on where it was

Both live on the controller's event loop, from the session's start to its end.
"""

import asyncio
import contextlib
import errno
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from crescendo.buffer import ExperienceBuffer
from crescendo.common.errors import (
    BufferRefusedError,
    CrescendoError,
    DiskFullError,
    StoreUnavailableError,
    WorkerLostError,
)
from crescendo.controller.loop.board import WAITING, Board
from crescendo.controller.loop.control import Control

R = TypeVar("R")

TELL_EVERY_S = 30.0
FIRST_PROBE_S = 0.25
LAST_PROBE_S = 5.0
CANCEL_AGAIN_S = 1.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

_REASONS: dict[type[CrescendoError], str] = {
    BufferRefusedError: "buffer refuses writes",
    DiskFullError: "disk is full",
    StoreUnavailableError: "checkpoint store does not answer",
    WorkerLostError: "buffer cannot be reached",
}

WAITED_FOR = tuple(_REASONS)


class Pulse:
    """Tells that the run still waits, and for what."""

    def __init__(self, board: Board, *, every_s: float = TELL_EVERY_S) -> None:
        self._board = board
        self._every_s = every_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            silent_s = self._board.silent_s
            if silent_s < self._every_s:
                await asyncio.sleep(self._every_s - silent_s)
                continue
            status = self._board.status
            self._board.event(
                WAITING, f"still in phase {status.phase}{self._board.phase_age()}",
                iteration=status.iteration, progress=status.phase_progress, tokens_per_second=status.tokens_per_second,
            )  # fmt: skip


class Patience:
    """Stands still while the buffer or the disk takes nothing. limit_s: longest time that the run stands still."""

    def __init__(
        self, board: Board, control: Control, *, limit_s: float, gave_up: Callable[[], CrescendoError | None]
    ) -> None:
        self._board = board
        self._control = control
        self._limit_s = limit_s
        self._gave_up = gave_up
        self._stood_from = 0.0

    async def through(
        self, act: Callable[[], Awaitable[R]], *, waits_for: tuple[type[CrescendoError], ...] = WAITED_FOR
    ) -> R:
        """act's answer. It must be idempotent: it is tried again until it is taken.

        waits_for: errors that stop the run, not the attempt. Where a lost worker can be another than the buffer, it
        must not be among them: nobody brings that one back while the loop waits. Raises the last error when the limit
        passes, the run is stopped, or the buffer was given up.
        """
        try:
            return await act()
        except waits_for as error:
            first = error
        with self.standing(describe(first)):
            return await self._insist(act, first, waits_for)

    async def _insist(
        self, act: Callable[[], Awaitable[R]], error: CrescendoError, waits_for: tuple[type[CrescendoError], ...]
    ) -> R:
        begun, wait_s = time.monotonic(), FIRST_PROBE_S
        while True:
            over = time.monotonic() - begun > self._limit_s or self._control.stop_requested
            if over or self._gave_up() is not None:
                raise self._gave_up() or error
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LAST_PROBE_S)
            try:
                return await act()
            except waits_for as again:
                error = again

    @contextlib.contextmanager
    def standing(self, reason: str) -> Iterator[None]:
        """The run stands still for a reason while the block runs; an event tells so at either end."""
        if self._board.hold(reason):
            self._stood_from = time.monotonic()
            self._board.event("run.standing", f"paused: {reason}", severity="warning")
        try:
            yield
        finally:
            self._board.release(reason)
            if not self._board.held:
                seconds = time.monotonic() - self._stood_from
                self._board.event("run.going_on", f"goes on after {seconds:.1f} s: {reason}", seconds=seconds)


async def cancel(tasks: Sequence["asyncio.Task[Any] | None"]) -> None:
    """Cancels tasks and waits for their end; again and again, since a client library may swallow a cancellation."""
    running = [task for task in tasks if task is not None]
    while pending := [task for task in running if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    await asyncio.gather(*running, return_exceptions=True)


def describe(error: CrescendoError) -> str:
    """Why the run stands still, in a line."""
    kind = next(text for type_, text in _REASONS.items() if isinstance(error, type_))
    return f"{kind} ({error.message.rstrip('.')})"


class _PatientBuffer:
    """Passes every call of the protocol through a Patience; all of them are idempotent."""

    def __init__(self, buffer: ExperienceBuffer, patience: Patience) -> None:
        self._buffer = buffer
        self._patience = patience

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._buffer, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            return await self._patience.through(lambda: method(*arguments, **options))

        return method if name == "close" else call


def patient(buffer: ExperienceBuffer, patience: Patience) -> ExperienceBuffer:
    """The buffer, whose calls wait while it refuses writes or cannot be reached."""
    return cast(ExperienceBuffer, _PatientBuffer(buffer, patience))


def disk_full(error: OSError, path: Path) -> DiskFullError | None:
    """The typed error of a failed write, if it failed for want of room."""
    if error.errno not in NO_ROOM:
        return None
    return DiskFullError(
        f"{path} could not be written: {error.strerror}", fix="Free space on its disk; the run goes on by itself."
    )
