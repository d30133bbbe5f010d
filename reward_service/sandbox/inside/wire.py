"""What the executor and a jail say to each other before the candidate runs. Pure apart from reading a descriptor.

    executor -> zygote   one packet a fork: JSON `ForkRequest`, descriptors: control, then cgroup files to join
    zygote -> executor   packets: JSON {"ready"}, {"forked", "pid"} with a pidfd, {"failed"}, {"ended", ...}
    executor -> jail     over control, once: four length bytes, JSON `Start`, then the bytes of the files, and with
                         the first byte the descriptors of standard input, output and error (warm jails)
    jail -> executor     over control: STARTED, or what went wrong; then it is closed, before candidate code

The zygote never sees a program: control goes from the executor to the forked child.
"""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

STARTED = b"started"
MAX_PACKET = 4096
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class ForkRequest:
    """The shape of a fresh jail: what cannot be changed once it is entered."""

    files_bytes: int
    num_files: int

    def encode(self) -> bytes:
        """As a packet."""
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True)
class Start:
    """Everything about a run but the contents of its files. Limits are in bytes and seconds."""

    entry: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    memory_bytes: int
    cpu_s: int
    file_bytes: int
    num_processes: int
    folder: str = ""  # landlock: where the executor has put the files; elsewhere the jail writes them itself
    files: list[tuple[str, int]] = field(default_factory=list)  # name, length

    def encode(self, contents: Mapping[str, bytes]) -> bytes:
        """As one message."""
        fields = asdict(self) | {"files": [(name, len(data)) for name, data in contents.items()]}
        header = json.dumps(fields).encode()
        return b"".join((_LENGTH.pack(len(header)), header, *contents.values()))


def read_start(descriptor: int, first: bytes = b"") -> tuple[Start, dict[str, bytes]]:
    """Reads one `Start` and its files, and not a byte more. first: what was read already, at most a length's bytes."""
    (length,) = _LENGTH.unpack(first + _read_exactly(descriptor, _LENGTH.size - len(first)))
    fields = json.loads(_read_exactly(descriptor, length))
    fields["arguments"] = tuple(fields["arguments"])
    start = Start(**fields)
    return start, {name: _read_exactly(descriptor, size) for name, size in start.files}


def _read_exactly(descriptor: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(descriptor, min(count, 1 << 20))
        if not part:
            raise EOFError("the executor has gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
