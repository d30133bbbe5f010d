"""Tensors in one memory-mapped file, 64-byte aligned, copied and hashed by threads.

Shared by the shm and disk channels. A thread copies a stretch that fits its cache and hashes it at once, so
that hashing adds little to the copy. numpy and xxhash both let go of the interpreter lock meanwhile.
"""

import math
import mmap
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from crescendo.common.errors import EnvironmentProblem
from crescendo.common.weights import aligned
from crescendo.proto.v1 import common_pb2
from crescendo.trainer.channels.base import Layout, NamedTensor

MAX_PENDING = 8
CHUNK_BYTES = 1 << 19  # stays in a core's cache between copy and hash
Bytes = npt.NDArray[np.uint8]


@dataclass
class MappedFile:
    """A file of fixed size, mapped writable. It outlives renames; the mapping goes with its last view."""

    path: Path
    size: int
    mapping: mmap.mmap

    @classmethod
    def anonymous(cls, size: int) -> "MappedFile":
        """Memory that only this process has, without a file."""
        return cls(Path(os.devnull), size, mmap.mmap(-1, size))

    @classmethod
    def create(cls, path: Path, size: int) -> "MappedFile":
        """A new file, mode 0600; raises EnvironmentProblem when there is no space for it."""
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Reserves the space now: writing to a full tmpfs through a mapping would be a fatal signal.
            os.posix_fallocate(descriptor, 0, size)
            return cls(path, size, mmap.mmap(descriptor, size))
        except OSError as error:
            path.unlink(missing_ok=True)
            raise EnvironmentProblem(
                f"no space for {size} bytes of weights at {path}: {error.strerror}.",
                fix=f"Free space below {path.parent}, or choose another trainer.weight_channel.",
            ) from error
        finally:
            os.close(descriptor)

    def rename(self, path: Path) -> None:
        """Gives the file another name; the mapping and its pages stay."""
        os.replace(self.path, path)
        self.path = path

    def bytes(self, offset: int, size: int) -> Bytes:
        """A writable view."""
        return np.frombuffer(self.mapping, dtype=np.uint8, count=size, offset=offset)

    def remove(self) -> None:
        """Deletes the file. The mapping goes with its last view."""
        self.path.unlink(missing_ok=True)


def plan(layout: Layout, dtype: str) -> tuple[list[common_pb2.TensorSpec], int]:
    """Where each tensor goes, and the file's size. dtype: float32, bfloat16, ..."""
    item_bytes = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    specs = []
    offset = 0
    for name, shape in layout:
        size = math.prod(shape) * item_bytes
        specs.append(common_pb2.TensorSpec(name=name, dtype=dtype, shape=shape, offset=offset, num_bytes=size))
        offset += aligned(size)
    return specs, max(1, offset)


def fill(
    file: MappedFile, specs: Sequence[common_pb2.TensorSpec], tensors: Iterable[NamedTensor], pool: ThreadPoolExecutor
) -> float:
    """Copies tensors to their places and sets each spec's digest; returns seconds spent hashing, over all threads.

    At most MAX_PENDING tensors are held at once, so that gathered ones do not pile up.
    """
    pending: deque[tuple[common_pb2.TensorSpec, Future[tuple[int, float]]]] = deque()
    hashing_s = 0.0
    for spec, tensor in zip(specs, tensors, strict=True):
        pending.append((spec, pool.submit(_copy, tensor.data, file, spec)))
        while len(pending) > MAX_PENDING:
            hashing_s += _collect(*pending.popleft())
    return hashing_s + sum(_collect(*each) for each in pending)


def _collect(spec: common_pb2.TensorSpec, job: "Future[tuple[int, float]]") -> float:
    spec.digest, seconds = job.result()
    return seconds


def _copy(tensor: torch.Tensor, file: MappedFile, spec: common_pb2.TensorSpec) -> tuple[int, float]:
    source = _rows(tensor)
    target = file.bytes(spec.offset, spec.num_bytes).view(source.dtype).reshape(source.shape)
    state = xxhash.xxh3_64()
    row_bytes = max(1, source[0].nbytes if len(source) else 1)
    step = max(1, CHUNK_BYTES // row_bytes)
    hashing_s = 0.0
    for start in range(0, len(source), step):
        part = target[start : start + step]
        np.copyto(part, source[start : start + step])
        began = time.perf_counter()
        state.update(part.reshape(-1).view(np.uint8).data)
        hashing_s += time.perf_counter() - began
    return int(state.intdigest()), hashing_s


def _rows(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    """The tensor for numpy, cut into rows: a long contiguous one in stretches of a chunk."""
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    if tensor.dtype is torch.bfloat16:  # numpy has no such type; only the bytes matter
        tensor = tensor.view(torch.int16)
    array: npt.NDArray[np.generic] = tensor.numpy()
    if not array.flags.c_contiguous:
        return array
    flat = array.reshape(-1)
    width = CHUNK_BYTES // 8 // flat.itemsize
    return flat.reshape(-1, width) if len(flat) % width == 0 and len(flat) else flat
