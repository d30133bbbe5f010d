"""What a run needs, as it travels into a jail: one message, read where only the standard library's core is loaded.

    executor -> jail    four length bytes, a header of NUL-separated texts, then the bytes of the files; for a warm jail
                        over its control socket, with the descriptors of the standard streams; else on standard input
    jail -> executor    over control: STARTED, or what went wrong; then it is closed, before candidate code

No dataclass and no JSON: importing those takes a cold interpreter longer than it takes to start.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

STARTED = b"started"
LENGTH_BYTES = 4
MAX_TROUBLE_BYTES = 4096


class Start:
    """Everything about a run but the contents of its files. No text may hold a NUL.

    entry: the file that runs as `__main__`; folder: where the executor has put the files (landlock), or empty: the jail
    writes them itself; file_bytes: of the largest file; limits in bytes and whole seconds.
    """

    def __init__(
        self,
        entry: str,
        folder: str,
        limits: tuple[int, int, int, int],
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
    ) -> None:
        self.entry = entry
        self.folder = folder
        self.memory_bytes, self.cpu_s, self.file_bytes, self.num_processes = limits
        self.arguments = arguments
        self.environment = dict(environment)

    def encode(self, contents: Mapping[str, bytes]) -> bytes:
        """The message, with the files' contents."""
        limits = (self.memory_bytes, self.cpu_s, self.file_bytes, self.num_processes)
        texts = [self.entry, self.folder, *map(str, limits), str(len(self.arguments)), *self.arguments]
        texts.append(str(len(self.environment)))
        for name, value in self.environment.items():
            texts += [name, value]
        for name, data in contents.items():
            texts += [name, str(len(data))]
        header = "\0".join(texts).encode()
        return b"".join((len(header).to_bytes(LENGTH_BYTES, "little"), header, *contents.values()))


def read_start(descriptor: int, first: bytes = b"") -> tuple[Start, dict[str, bytes]]:
    """Reads one message, and not a byte more. first: what was read already, at most a length's bytes."""
    length = first + _read_exactly(descriptor, LENGTH_BYTES - len(first))
    texts = iter(_read_exactly(descriptor, int.from_bytes(length, "little")).decode().split("\0"))
    entry, folder = next(texts), next(texts)
    limits = (int(next(texts)), int(next(texts)), int(next(texts)), int(next(texts)))
    arguments = tuple(next(texts) for _ in range(int(next(texts))))
    environment = {next(texts): next(texts) for _ in range(int(next(texts)))}
    sizes = {name: int(next(texts)) for name in texts}
    contents = {name: _read_exactly(descriptor, size) for name, size in sizes.items()}
    return Start(entry, folder, limits, arguments, environment), contents


def _read_exactly(descriptor: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(descriptor, min(count, 1 << 20))
        if not part:
            raise EOFError("the executor has gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
