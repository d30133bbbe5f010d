"""A full disk under the run folder: the run stands still, then goes on with everything that it had to write."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crescendo.common import runfolder
from crescendo.common.errors import DiskFullError
from crescendo.common.runfolder import RunFolder
from crescendo.common.telemetry import JsonlWriter, read_jsonl
from crescendo.controller.loop import waits
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.commits import _place
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.waits import Patience


class Disk:
    """Has no room for some writes; takes a part of one before."""

    def __init__(self, failures: int, write: Callable[[int, bytes], int]) -> None:
        self.failures, self._write = failures, write

    def write(self, descriptor: int, data: bytes) -> int:
        if self.failures:
            self.failures -= 1
            if self.failures == 0 and len(data) > 4:
                return self._write(descriptor, data[:4])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(descriptor, data)


def test_rows_wait_for_room_and_none_is_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JsonlWriter(tmp_path / "rows.jsonl")
    disk = Disk(3, os.write)
    monkeypatch.setattr(os, "write", disk.write)
    for number in range(4):
        writer.write({"number": number})
    writer.close()
    assert [row["number"] for row in read_jsonl(tmp_path / "rows.jsonl")] == [0, 1, 2, 3]


async def test_a_commit_waits_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path / "run", "run")
    board = Board(folder, "run")
    monkeypatch.setattr(waits, "FIRST_PROBE_S", 0.005)
    patience = Patience(board, Control(), limit_s=10, gave_up=lambda: None)
    failures = [OSError(errno.ENOSPC, "No space left on device")] * 2
    sync = os.fsync

    def full(descriptor: int) -> None:
        if failures:
            raise failures.pop()
        sync(descriptor)

    monkeypatch.setattr(runfolder.os, "fsync", full)
    path = folder.checkpoints / "commit-00000001.json"

    async def place() -> None:
        _place(path, "{}")

    with pytest.raises(DiskFullError, match="commit-00000001"):
        await place()
    assert not path.exists()
    failures.append(OSError(errno.ENOSPC, "No space left on device"))
    await patience.through(place)
    assert path.read_text() == "{}"
    kinds: list[Any] = [event.kind for event in board.events]
    assert kinds == ["run.standing", "run.going_on"]
    assert "paused: disk is full (" in board.events[0].message
    board.close()
