"""A segment as it lies in the buffer: packed arrays behind a short header and a digest.

    bytes 0-8    xxh3-64 of the rest, little-endian: a damaged segment is found when it is read, not when it trains
    bytes 8-40   HEADER
    then         the stage's name, a zero and the engine's name in UTF-8, filled with zeros to a multiple of 4
                 token ids int32 [T], log-probabilities float32 [T], little-endian
                 loss mask, one bit a token, LSB first; absent when every token trains

Fixed-width fields instead of a message, because a flush packs hundreds of them: packing costs a third of protobuf's
and the arrays are read without a copy. T is the number of tokens.
"""

import functools
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from crescendo.common.errors import BufferStateError
from crescendo.common.types import BoolArray, Segment

_DIGEST = struct.Struct("<Q")
_HEADER = struct.Struct("<BBHIqqq")  # format, flags, bytes of names, tokens, weight version, iteration, branch
_BOTH = struct.Struct("<QBBHIqqq")
_FORMAT = 1
_TOOL_TURN, _MASKED = 1, 2
_START = _BOTH.size
_ARRAYS = ("token_ids", "log_probs", "loss_mask")
_INT32, _FLOAT32 = np.dtype("<i4"), np.dtype("<f4")


class _AllTrain:
    """Read-only masks of ones that share one array."""

    def __init__(self) -> None:
        self._ones = self._make(1024)

    def of(self, count: int) -> BoolArray:
        """A mask [count]."""
        if count > len(self._ones):
            self._ones = self._make(2 * count)
        return self._ones[:count]

    @staticmethod
    def _make(count: int) -> BoolArray:
        ones = np.ones(count, dtype=np.bool_)
        ones.flags.writeable = False
        return ones


_all_train = _AllTrain()


def pack_segment(segment: Segment) -> bytes:
    """A segment's bytes."""
    names, padding = _pack_names(segment.stage, segment.worker_id)
    flags = _TOOL_TURN if segment.tool_turn else 0
    mask = segment.loss_mask.tobytes()
    if b"\0" in mask:
        flags |= _MASKED
        mask = np.packbits(segment.loss_mask, bitorder="little").tobytes()
    else:
        mask = b""
    header = _HEADER.pack(
        _FORMAT, flags, len(names), len(segment.token_ids), segment.weight_version, segment.iteration, segment.branch
    )
    rest = b"".join(
        (
            header,
            names,
            padding,
            _as(segment.token_ids, _INT32),
            _as(segment.log_probs, _FLOAT32),
            mask,
        )
    )
    return _DIGEST.pack(xxhash.xxh3_64_intdigest(rest)) + rest


def unpack_segment(packed: bytes | None) -> Segment:
    """The segment; raises BufferStateError when its bytes are not what was stored."""
    if packed is None:
        raise BufferStateError("a segment is missing.", field="segments")
    if len(packed) < _START:
        raise BufferStateError(f"a segment has {len(packed)} bytes, less than its header.", field="segments")
    digest, kind, flags, name_bytes, count, version, iteration, branch = _BOTH.unpack_from(packed)
    if digest != xxhash.xxh3_64_intdigest(memoryview(packed)[_DIGEST.size :]):
        raise BufferStateError(f"a segment of {len(packed)} bytes does not match its digest.", field="segments")
    if kind != _FORMAT:
        raise BufferStateError(f"a segment has format {kind}; this Crescendo reads {_FORMAT}.", field="segments")
    stage, worker_id = _names(packed[_START : _START + name_bytes])
    # The digest vouches for bytes that Segment's own checks have passed, so they are not made again: reading
    # thousands of segments would take twice as long.
    made: _Stored = object.__new__(_Stored)
    fields = {
        "weight_version": version,
        "iteration": iteration,
        "stage": stage,
        "branch": branch,
        "tool_turn": bool(flags & _TOOL_TURN),
        "worker_id": worker_id,
        "_packed": packed,
        "_count": count,
        "_tokens_at": _START + name_bytes + -name_bytes % 4,
        "_masked": flags & _MASKED,
    }
    object.__setattr__(made, "__dict__", fields)
    return made


class _Stored(Segment):
    """A segment as it was read: an array is made, without a copy, when somebody asks for it.

    Scoring looks at tokens alone, and what is claimed again at their number.
    """

    _packed: bytes
    _count: int
    _tokens_at: int
    _masked: int

    def __getattr__(self, name: str) -> Any:
        """Called for what the object does not have yet."""
        if name not in _ARRAYS:
            raise AttributeError(f"a segment has no {name}")
        count, at = self._count, self._tokens_at
        if name == "token_ids":
            array = np.ndarray((count,), _INT32, self._packed, at)
        elif name == "log_probs":
            array = np.ndarray((count,), _FLOAT32, self._packed, at + 4 * count)
        elif self._masked:
            bits = np.frombuffer(self._packed, dtype=np.uint8, offset=at + 8 * count)
            array = np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
        else:
            array = _all_train.of(count)
        self.__dict__[name] = array
        return array


@functools.lru_cache(maxsize=1024)
def _pack_names(stage: str, worker_id: str) -> tuple[bytes, bytes]:
    """Stage and engine, and what fills them up."""
    names = f"{stage}\0{worker_id}".encode()
    return names, bytes(-len(names) % 4)


@functools.lru_cache(maxsize=1024)
def _names(packed: bytes) -> tuple[str, str]:
    """Stage and engine, which many segments share."""
    stage, _, worker_id = packed.decode().partition("\0")
    return stage, worker_id


def _as(array: npt.NDArray[np.generic], dtype: "np.dtype[np.generic]") -> bytes:
    return array.tobytes() if array.dtype is dtype else array.astype(dtype, copy=False).tobytes()
