"""FolderLock: one owner at a time, and none for ever."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crescendo.common.errors import RunFolderError
from crescendo.common.runfolder import RunFolder
from crescendo.controller import ownership
from crescendo.controller.loop.board import Board
from crescendo.controller.ownership import FolderLock


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", "run")


def test_a_held_folder_is_refused_until_it_is_released(folder: RunFolder) -> None:
    first = FolderLock.take(folder)
    with pytest.raises(RunFolderError, match="in use by another controller"):
        FolderLock.take(folder)
    first.release()
    FolderLock.take(folder).release()


def test_a_lock_is_taken_over_on_request_or_when_its_owner_does_not_show(folder: RunFolder) -> None:
    first = FolderLock.take(folder)
    second = FolderLock.take(folder, take_over=True)
    assert (first.held, second.held) == (False, True)
    long_ago = time.time() - ownership.STALE_S - 1
    os.utime(folder.lock, (long_ago, long_ago))
    third = FolderLock.take(folder)
    assert [lock.held for lock in (first, second, third)] == [False, False, True]
    first.release()
    assert third.held
    for lock in (second, third):
        lock.release()


def test_a_board_without_its_folder_writes_nothing(folder: RunFolder) -> None:
    lock = FolderLock.take(folder)
    board = Board(folder, "run", may_write=lambda: lock.held)
    board.event("run.first", "ours")
    successor = FolderLock.take(folder, take_over=True)
    board.event("run.second", "nobody asked")
    board.metrics("stage", {"iteration": 1.0})
    assert folder.events.read_text().count("\n") == 1
    assert folder.metrics.read_text() == ""
    board.close()
    lock.release()
    successor.release()


TAKE_AND_DIE = """
import os, pathlib, sys
from crescendo.common.runfolder import RunFolder
from crescendo.controller.ownership import FolderLock
FolderLock.take(RunFolder(pathlib.Path(sys.argv[1])))
os._exit(9)
"""


def test_a_dead_owner_holds_nothing(folder: RunFolder) -> None:
    ran = subprocess.run([sys.executable, "-c", TAKE_AND_DIE, str(folder.root)], timeout=60, check=False)
    assert ran.returncode == 9
    FolderLock.take(folder).release()
