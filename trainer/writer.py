"""Checkpoints written beside training: one thread, one file set after the other.

    idle -- start --> writing -- finish --> idle

`start` takes what is to be written and returns; `finish` waits for it and gives its files or raises its error. A
checkpoint that nobody finishes counts for nothing: no manifest names it. Owned by trainer/worker.py, one a rank;
`wait` alone may be called from another thread.
"""

import errno
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from crescendo.common.errors import CrescendoError, DiskFullError, RequestError
from crescendo.proto.v1 import trainer_pb2

Files = list[trainer_pb2.CheckpointFile]


class Writer:
    """Pending writes by path."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint", initializer=self._note_clock)
        self._clock: int | None = None
        self._pending: dict[str, Future[tuple[Files, float]]] = {}

    def _note_clock(self) -> None:
        self._clock = time.pthread_getcpuclockid(threading.get_ident())

    @property
    def cpu_seconds(self) -> float:
        """CPU time that writing has taken; it may go on while engines have the device."""
        return time.clock_gettime(self._clock) if self._clock is not None else 0.0

    def start(self, path: str, write: Callable[[], Files]) -> None:
        """Begins to write; a second start for the same path waits for the first, whose result is dropped."""
        self._pending[path] = self._pool.submit(_timed, path, write)

    def wait(self, path: str) -> None:
        """Returns when what was started has ended, well or not."""
        pending = self._pending.get(path)
        if pending is not None:
            wait([pending])

    def finish(self, path: str) -> tuple[Files, float]:
        """The files and the seconds that writing took.

        Raises what stopped it: DiskFullError, or RequestError when nothing was started.
        """
        if path not in self._pending:
            raise RequestError(f"no checkpoint is being written to {path}.", field="path", fix="Save it again.")
        return self._pending.pop(path).result()

    def close(self) -> None:
        """Lets the thread end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _timed(path: str, write: Callable[[], Files]) -> tuple[Files, float]:
    began = time.perf_counter()
    try:
        return write(), time.perf_counter() - began
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"{path} could not be written: {error.strerror}", fix="Free space there.") from error
        raise CrescendoError(f"{path} could not be written: {error.strerror or error}.") from error
