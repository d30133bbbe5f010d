"""Weights on their way from trainer to engine: digests, layout of a bucket, and the manifest's own digest.

Both sides compute the digest of each tensor where its bytes lie (xxh3-64: fast, not cryptographic: it
guards against mistakes, not against an attacker).
"""

from collections.abc import Iterable
from pathlib import Path

import xxhash

from crescendo.proto.v1 import common_pb2

ALIGNMENT = 64  # bytes; tensors start on cache lines
SHM_FOLDER = Path("/dev/shm")


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


def aligned(num_bytes: int) -> int:
    """num_bytes rounded up to the alignment."""
    return (num_bytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def shm_path(run_id: str, version: int) -> Path:
    """The shared-memory file of one version of a run."""
    return SHM_FOLDER / f"crescendo-{run_id}-w{version}"


def stale_shm_files(run_id: str) -> list[Path]:
    """Shared-memory files that a run left behind."""
    return sorted(SHM_FOLDER.glob(f"crescendo-{run_id}-*"))
