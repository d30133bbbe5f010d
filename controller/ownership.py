"""Whose run folder it is: one controller at a time, also when the former one only seems dead.

The lock is a file that its owner holds by flock and touches every few seconds. A controller that ended, however,
holds nothing; one that was stopped holds its flock for ever. Therefore a lock that has not been touched for STALE_S,
or any lock on request (`--take-over`), is taken by putting another file in its place: `held` of the former owner is
false from then on. What it still sends is refused by its fence (docs/decisions/0011); `held` keeps it from writing
what carries no fence: events, the controller's address, reports.
"""

import asyncio
import fcntl
import os
import time

from crescendo.common.errors import RunFolderError
from crescendo.common.runfolder import RunFolder

TOUCH_S = 5.0
STALE_S = 90.0


class FolderLock:
    """A taken lock; `release` lets go of it."""

    def __init__(self, folder: RunFolder, descriptor: int) -> None:
        self._path = folder.lock
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: RunFolder, *, take_over: bool = False) -> "FolderLock":
        """Takes the folder for this process; raises RunFolderError when another controller has it."""
        while True:
            lock = cls(folder, os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o600))
            try:
                fcntl.flock(lock._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.release()
                if not take_over and not is_stale(folder):
                    raise RunFolderError(
                        f"{folder.root} is in use by another controller.",
                        fix=f"Watch it with `crescendo watch {folder.root}`, or stop it first; when it hangs, "
                        f"`crescendo resume {folder.root} --take-over`.",
                    ) from None
                return cls._replace(folder)
            if lock.held:  # nobody put another file there meanwhile
                os.utime(lock._descriptor)
                return lock
            lock.release()

    @classmethod
    def _replace(cls, folder: RunFolder) -> "FolderLock":
        """Puts a lock of our own in the place of one that is held. Of two who do so at once the later has it."""
        scratch = folder.lock.with_name(f".lock.{os.getpid()}")
        lock = cls(folder, os.open(scratch, os.O_RDWR | os.O_CREAT, 0o600))
        fcntl.flock(lock._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.replace(scratch, folder.lock)
        return lock

    @property
    def held(self) -> bool:
        """Whether the folder is still ours."""
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    async def touch(self) -> None:
        """Shows that this controller lives; until cancelled."""
        while True:
            os.utime(self._descriptor)
            await asyncio.sleep(TOUCH_S)

    def release(self) -> None:
        """Lets go."""
        os.close(self._descriptor)


def is_stale(folder: RunFolder) -> bool:
    """Whether the lock's owner has not shown for so long that it counts as dead."""
    try:
        return time.time() - folder.lock.stat().st_mtime > STALE_S
    except FileNotFoundError:
        return False
