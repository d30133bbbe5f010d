"""Patience and Pulse: a refused write stops the run without losing anything, and no wait is silent."""

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from crescendo.buffer import ExperienceBuffer
from crescendo.common.errors import BufferRefusedError, CrescendoError, DiskFullError, RequestError, WorkerLostError
from crescendo.common.runfolder import RunFolder
from crescendo.common.telemetry import read_jsonl
from crescendo.controller.loop import waits
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.waits import Patience, Pulse, disk_full, patient

FULL = BufferRefusedError("OOM command not allowed.")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(RunFolder.create(tmp_path / "run", "run"), "run")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "FIRST_PROBE_S", 0.005)


class Refusing:
    """A buffer that refuses some calls, then takes them."""

    def __init__(self, *errors: CrescendoError) -> None:
        self.errors = list(errors)
        self.taken: list[str] = []

    async def record_batch(self, fence: Any, batch: str) -> str:
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append(batch)
        return "recorded"

    async def close(self) -> None:
        self.taken.append("closed")


def made(board: Board, control: Control | None = None, limit_s: float = 5.0) -> Patience:
    return Patience(board, control or Control(), limit_s=limit_s, gave_up=lambda: None)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, "paused: buffer refuses writes (OOM command not allowed)"),
        (WorkerLostError("connection refused."), "paused: buffer cannot be reached (connection refused)"),
        (DiskFullError("no room."), "paused: disk is full (no room)"),
    ],
)
async def test_the_run_stands_still_and_goes_on_where_it_was(board: Board, error: CrescendoError, said: str) -> None:
    refusing = Refusing(error, error, error)
    buffer: Any = patient(cast(ExperienceBuffer, refusing), made(board))
    recording = asyncio.create_task(buffer.record_batch(None, "batch 1"))
    await asyncio.sleep(0.002)
    standing = board.snapshot()
    assert (standing.paused, standing.message) == (True, said)
    assert await recording == "recorded"
    assert refusing.taken == ["batch 1"]
    assert [event.kind for event in board.events] == ["run.standing", "run.going_on"]
    assert not board.snapshot().paused


async def test_a_lost_worker_that_is_not_the_buffer_is_not_waited_for(board: Board) -> None:
    refusing = Refusing(DiskFullError("no room."), WorkerLostError("the trainer's process ended."))
    with pytest.raises(WorkerLostError, match="trainer"):
        await made(board).through(lambda: refusing.record_batch(None, "x"), waits_for=(DiskFullError,))
    assert [event.kind for event in board.events] == ["run.standing", "run.going_on"]


async def test_what_several_calls_wait_for_is_told_once(board: Board) -> None:
    buffer: Any = patient(cast(ExperienceBuffer, Refusing(*[FULL] * 6)), made(board))
    await asyncio.gather(*(buffer.record_batch(None, name) for name in "abc"))
    assert [event.kind for event in board.events] == ["run.standing", "run.going_on"]


async def test_other_errors_a_stop_and_the_limit_end_the_wait(board: Board) -> None:
    buffer: Any = patient(cast(ExperienceBuffer, Refusing(RequestError("nonsense."))), made(board))
    with pytest.raises(RequestError):
        await buffer.record_batch(None, "x")
    assert not board.events
    buffer = patient(cast(ExperienceBuffer, Refusing(*[FULL] * 99)), made(board, limit_s=0.03))
    with pytest.raises(BufferRefusedError):
        await buffer.record_batch(None, "x")
    control = Control()
    control.stop(commit=True)
    buffer = patient(cast(ExperienceBuffer, Refusing(*[FULL] * 99)), made(board, control))
    with pytest.raises(BufferRefusedError):
        await buffer.record_batch(None, "x")
    assert not board.held


async def test_a_buffer_that_was_given_up_is_not_waited_for(board: Board) -> None:
    reason = WorkerLostError("valkey does not start.")
    patience = Patience(board, Control(), limit_s=60, gave_up=lambda: reason)
    buffer: Any = patient(cast(ExperienceBuffer, Refusing(*[FULL] * 99)), patience)
    with pytest.raises(WorkerLostError, match="valkey does not start"):
        await buffer.record_batch(None, "x")


async def test_silence_is_broken_and_talk_is_not_interrupted(tmp_path: Path, board: Board) -> None:
    pulse = asyncio.create_task(Pulse(board, every_s=0.05).run())
    with board.phase("train", 3):
        for _ in range(5):
            board.event("trajectory.excluded", "talk")
            await asyncio.sleep(0.02)
        assert not [event for event in board.events if event.kind == "run.waiting"]
        await asyncio.sleep(0.2)
    pulse.cancel()
    rows = [row for row in read_jsonl(tmp_path / "run" / "events.jsonl") if row["kind"] == "run.waiting"]
    assert 2 <= len(rows) <= 5
    assert "still in phase train after" in rows[0]["message"]
    assert [event.kind for event in board.events].count("run.waiting") == 1  # the newest says it all


def test_only_want_of_room_is_a_full_disk() -> None:
    assert isinstance(disk_full(OSError(errno.ENOSPC, "No space left on device"), Path("x")), DiskFullError)
    assert disk_full(OSError(errno.EACCES, "Permission denied"), Path("x")) is None
