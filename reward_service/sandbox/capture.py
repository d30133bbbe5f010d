"""What a program writes: a pipe read into memory up to a limit, on the event loop."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable

_CHUNK = 1 << 16


class Capture:
    """One output stream. `writer` goes to the program; `finish` when the program is gone.

    limit: bytes kept; when more arrive, `on_excess` is called once and the rest is dropped. on_first: called when the
    first byte arrives.
    """

    def __init__(self, limit: int, on_excess: Callable[[], None], on_first: Callable[[], None] = lambda: None) -> None:
        self._limit = limit
        self._on_excess = on_excess
        self._on_first = on_first
        self._parts: list[bytes] = []
        self._size = 0
        self.is_truncated = False
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader, self._read)
        self._closed = asyncio.Event()

    def close_writer(self) -> None:
        """Closes our copy of the program's end."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    async def wait_closed(self) -> None:
        """Until no process has the program's end open any more."""
        await self._closed.wait()

    def finish(self) -> bytes:
        """All that was written and kept. The program has ended, so nothing blocks."""
        self.close_writer()
        while self._reader >= 0 and not self.is_truncated and self._read():
            pass
        self._close()
        return b"".join(self._parts)

    def _read(self) -> bool:
        """Whether there was something."""
        try:
            data = os.read(self._reader, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._close()
            return False
        if self.is_truncated:
            return True
        if not self._size:
            self._on_first()
        kept = data[: self._limit - self._size]
        self._parts.append(kept)
        self._size += len(kept)
        if len(kept) < len(data):
            self.is_truncated = True
            self._on_excess()
        return True

    def _close(self) -> None:
        if self._reader >= 0:
            self._loop.remove_reader(self._reader)
            with contextlib.suppress(OSError):
                os.close(self._reader)
            self._reader = -1
            self._closed.set()


def sealed_file(data: bytes) -> int:
    """A descriptor of an anonymous file with these bytes, at its beginning; sealed, so that nobody writes into it."""
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
