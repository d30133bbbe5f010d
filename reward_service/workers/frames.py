"""Messages over a stream: four little-endian length bytes, then a serialized message."""

import struct
from collections.abc import Iterator

_LENGTH = struct.Struct("<I")


class FrameTooLongError(Exception):
    """The other side announced more than the limit."""


def frame(payload: bytes) -> bytes:
    """A payload with its length before it."""
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into payloads: `feed` bytes as they come, then iterate `payloads`.

    limit: bytes in one payload; an announcement above it raises FrameTooLongError before anything is stored.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Adds bytes that arrived."""
        self._buffer += data

    def payloads(self) -> Iterator[bytes]:
        """Every payload that is complete, in order."""
        at = 0
        try:
            while len(self._buffer) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, at)
                if length > self._limit:
                    raise FrameTooLongError(f"a message of {length} bytes; the limit is {self._limit}")
                end = at + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                yield bytes(self._buffer[at + _LENGTH.size : end])
                at = end
        finally:
            del self._buffer[:at]
