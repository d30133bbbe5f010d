"""Weights on their way from trainer to engine: digests, layout of a bucket, and the manifest's own digest.

Both sides compute the digest of each tensor where its bytes lie (xxh3-64: fast, not cryptographic: it
guards against mistakes, not against an attacker).
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import xxhash

from crescendo.proto.v1 import common_pb2

ALIGNMENT = 64  # bytes; tensors start on cache lines
SHM_FOLDER = Path("/dev/shm")
DIGEST_WORDS = 8 << 20  # 64 MiB at a time: intermediate values take a few times as much
_MULTIPLIER = -7046029254386353131  # 2^64 / golden ratio, odd, as int64 (Knuth, multiplicative hashing)
_64_BITS = (1 << 64) - 1


def tensor_digest(data: memoryview | bytes) -> int:
    """xxh3-64 of a tensor's bytes."""
    return int(xxhash.xxh3_64_intdigest(data))


def manifest_digest(tensors: Iterable[common_pb2.TensorSpec], digests: Iterable[int]) -> int:
    """One number for a whole version: over names, types, shapes and digests, in manifest order."""
    state = xxhash.xxh3_64()
    for tensor, digest in zip(tensors, digests, strict=True):
        shape = ",".join(str(size) for size in tensor.shape)
        state.update(f"{tensor.name}|{tensor.dtype}|{shape}|{digest:016x}\n".encode())
    return int(state.intdigest())


def word_digest(words: Any, positions: Any) -> int:
    """A 64-bit digest that any device computes in parallel: sum of mixed words, each weighted by its place.

    words: [W] int64, the tensor's bytes, zero-padded to eight; positions: [W] 1, 2, ... in int64. Arrays of numpy or
    PyTorch, whose integers wrap alike. Not cryptographic; any single changed word changes it.
    """
    mixed = (words ^ (words >> 32)) * _MULTIPLIER
    mixed = (mixed ^ (mixed >> 29)) * (positions * 2 + 1)
    return int(mixed.sum()) & _64_BITS


def long_word_digest(words: Any, arange: Callable[[int, int], Any]) -> int:
    """word_digest of any number of words, a bounded stretch at a time. arange: int64 numbers on the words' device."""
    starts = range(0, len(words), DIGEST_WORDS)
    parts = ((start, words[start : start + DIGEST_WORDS]) for start in starts)
    return sum(word_digest(part, arange(start + 1, start + 1 + len(part))) for start, part in parts) & _64_BITS


def aligned(num_bytes: int) -> int:
    """num_bytes rounded up to the alignment."""
    return (num_bytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def shm_path(run_id: str, version: int) -> Path:
    """The shared-memory file of one version of a run."""
    return SHM_FOLDER / f"crescendo-{run_id}-w{version}"


def stale_shm_files(run_id: str) -> list[Path]:
    """Shared-memory files that a run left behind."""
    return sorted(SHM_FOLDER.glob(f"crescendo-{run_id}-*"))
