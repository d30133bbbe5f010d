"""Safetensors files, written a tensor at a time and hashed on the way.

The format (huggingface/safetensors): eight bytes of header length, a JSON header with type, shape and place of
each tensor, then the bytes. Writing it here lets a gathered tensor go before the next one comes, and gives the
digest of the whole file without reading it again. Reading is the safetensors package's.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import xxhash

from crescendo.common.errors import CheckpointError
from crescendo.proto.v1 import trainer_pb2

_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.uint8: "U8"}
_READ_BYTES = 1 << 22

Layout = Sequence[tuple[str, tuple[int, ...]]]


class _HashedFile:
    """A file that knows the digest of what was written; a context manager, flushed to the disk at a good end."""

    def __init__(self, path: Path, root: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by __exit__
        self._state = xxhash.xxh3_64()
        self.entry = trainer_pb2.CheckpointFile(path=str(path.relative_to(root)))

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._state.update(data)
        self.entry.num_bytes += len(data)

    def __enter__(self) -> "_HashedFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self.entry.digest = int(self._state.intdigest())


def write_tensors(
    path: Path,
    root: Path,
    layout: Layout,
    dtype: torch.dtype,
    tensors: Iterable[torch.Tensor],
    metadata: Mapping[str, str],
) -> trainer_pb2.CheckpointFile:
    """Writes a safetensors file of tensors of one type, in the order of layout (name, shape)."""
    item_bytes = torch.empty(0, dtype=dtype).element_size()
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in layout:
        size = math.prod(shape) * item_bytes
        header[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _HashedFile(path, root) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for (name, shape), tensor in zip(layout, tensors, strict=True):
            if tensor.numel() != math.prod(shape):
                raise CheckpointError(f"tensor {name} has {tensor.numel()} elements; its place has shape {shape}.")
            plain = tensor.detach().to("cpu", dtype).contiguous().view(-1).view(torch.uint8)
            file.write(plain.numpy().data)
    return file.entry


def write_bytes(path: Path, root: Path, data: bytes) -> trainer_pb2.CheckpointFile:
    """Writes a small file."""
    with _HashedFile(path, root) as file:
        file.write(data)
    return file.entry


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify(root: Path, files: Iterable[trainer_pb2.CheckpointFile]) -> None:
    """Compares files with what was recorded; raises CheckpointError naming the first that differs."""
    for entry in files:
        path = root / entry.path
        if not path.resolve().is_relative_to(root.resolve()):
            raise CheckpointError(f"checkpoint file {entry.path!r} lies outside {root}.", field="files")
        state = xxhash.xxh3_64()
        size = 0
        try:
            with open(path, "rb") as file:
                while chunk := file.read(_READ_BYTES):
                    state.update(chunk)
                    size += len(chunk)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint file {path} cannot be read: {error.strerror}.", fix="Resume from an older checkpoint."
            ) from None
        if size != entry.num_bytes or state.intdigest() != entry.digest:
            raise CheckpointError(
                f"checkpoint file {path} has {size} bytes and digest {state.intdigest():016x}; its manifest says "
                f"{entry.num_bytes} and {entry.digest:016x}.",
                fix="The file is damaged: resume from an older checkpoint.",
            )
