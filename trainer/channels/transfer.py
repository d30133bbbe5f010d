"""What the channels `ipc` and `nccl` send: versions whose tensors stay where they are, through one transfer buffer.

The buffer is GPU memory that another process opens by CUDA IPC; where the trainer computes on cores it is a file in
shared memory. Tensors are read from the parameters themselves, on the device or, while the trainer has let go of it, on
the host (trainer/device.py): so a late joiner is served too. Tensors that were gathered from other ranks are no
parameters; they are kept on the host. Digests are computed where the tensors lie (common/weights.py, word_digest).
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch.multiprocessing.reductions import reduce_tensor

from crescendo.common.errors import RequestError
from crescendo.common.weights import aligned, long_word_digest
from crescendo.proto.v1 import common_pb2, weights_pb2
from crescendo.trainer.channels.base import Layout, NamedTensor, Written
from crescendo.trainer.channels.mapped import MappedFile, plan
from crescendo.trainer.channels.serving import WeightServer

BUCKET_BYTES = 256 << 20
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"


class Home(Protocol):
    """Where the trainer's parameters are. still: while held, they are not moved."""

    @property
    def still(self) -> AbstractContextManager[object]: ...

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether it is a view of a parameter."""
        ...

    def find(self, tensor: torch.Tensor) -> torch.Tensor:
        """The view's values, wherever they are now; of what is nowhere, an empty storage."""
        ...


class Resident:
    """Of tensors that never move."""

    still: AbstractContextManager[object] = nullcontext()

    def owns(self, tensor: torch.Tensor) -> bool:
        return True

    def find(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


class Outbox:
    """The versions that can be asked for. turn: of whoever uses the buffer; the channel holds it meanwhile."""

    def __init__(self, path: Path, home: Home | None = None) -> None:
        """path: of the buffer's file."""
        self._path = path
        self._home = home or Resident()
        self._versions: dict[int, tuple[list[common_pb2.TensorSpec], list[torch.Tensor]]] = {}
        self._buffer: TransferBuffer | None = None
        self._device = torch.device("cpu")
        self.turn = threading.Lock()

    def hold(
        self, version: int, layout: Layout, dtype: str, tensors: Iterable[NamedTensor]
    ) -> tuple[list[common_pb2.TensorSpec], int]:
        """Computes digests and keeps what is needed; returns the tensors and the bytes of a version."""
        specs, size = plan(layout, dtype)
        held = []
        for spec, each in zip(specs, tensors, strict=True):
            spec.digest = digest(each.data)
            self._device = each.data.device
            held.append(each.data if self._home.owns(each.data) else each.data.to("cpu", copy=True))
        with self.turn:
            self._versions[version] = (specs, held)
        return specs, size

    def retire(self, below_version: int) -> None:
        """Older versions are served no more."""
        with self.turn:
            for version in [v for v in self._versions if v < below_version]:
                del self._versions[version]

    def close(self) -> None:
        """Frees everything."""
        with self.turn:
            self._versions.clear()
            if self._buffer is not None:
                self._buffer.close()
            self._buffer = None

    def require(self, version: int) -> None:
        """Raises RequestError for a version that is not there, or is lost with the trainer's device."""
        found = self._versions.get(version)
        if found is None or not all(_is_there(self._home.find(tensor)) for tensor in found[1]):
            raise RequestError(
                f"weight version {version} is not served: the trainer has let go of it; there are "
                f"{sorted(self._versions) or 'none'}.",
                field="version",
                fix="Take the newest manifest from the registry.",
            )

    def buckets(self, version: int, first: int = 0) -> "Iterator[tuple[TransferBuffer, weights_pb2.WeightBucket]]":
        """Fills the buffer bucket after bucket, from a tensor on; the next one takes the place of the one before."""
        self.require(version)
        specs, held = self._versions[version]
        buffer = self._fitting(specs)
        members = list(_members(specs, buffer.size, first))
        for number, indices in enumerate(members):
            with self._home.still:
                self.require(version)
                offsets = buffer.fill([self._home.find(held[index]) for index in indices])
            yield (
                buffer,
                weights_pb2.WeightBucket(
                    tensors=indices,
                    offsets=offsets,
                    num_bytes=offsets[-1] + aligned(specs[indices[-1]].num_bytes),
                    last=number == len(members) - 1,
                ),
            )

    @property
    def device(self) -> torch.device:
        """Of the buffer: the one on which the last version was."""
        return self._device

    def _fitting(self, specs: Sequence[common_pb2.TensorSpec]) -> "TransferBuffer":
        sizes = [aligned(spec.num_bytes) for spec in specs]
        size = min(max(BUCKET_BYTES, *sizes), sum(sizes))
        if self._buffer is None or self._buffer.size < size:
            if self._buffer is not None:
                self._buffer.close()
            self._buffer = TransferBuffer(size, self._device, self._path)
        return self._buffer


class TransferBuffer:
    """Memory that another process opens by its handle. Its owner alone writes. bytes: [size] uint8."""

    def __init__(self, size: int, device: torch.device, path: Path) -> None:
        self.size = size
        self._device = device
        self._file: MappedFile | None = None
        if device.type == "cpu":
            self._file = MappedFile.create(path, size)
            self.bytes = torch.frombuffer(self._file.mapping, dtype=torch.uint8)
        else:
            self.bytes = _shareable(size, device)

    def fill(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        """Copies tensors in, aligned, and waits for the device; returns their offsets."""
        offsets = []
        end = 0
        for tensor in tensors:
            num_bytes = tensor.numel() * tensor.element_size()
            target = self.bytes[end : end + num_bytes].view(tensor.dtype).view(tensor.shape)
            target.copy_(tensor)
            offsets.append(end)
            end += aligned(num_bytes)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return offsets

    def handle(self) -> bytes:
        """How another process opens it, a serialized BufferHandle; of GPU memory a new one for each that does."""
        if self._file is not None:
            return weights_pb2.BufferHandle(num_bytes=self.size, path=str(self._file.path)).SerializeToString()
        _, arguments = reduce_tensor(self.bytes)  # type: ignore[no-untyped-call]
        storage, num_bytes, offset, _, counter, counter_offset, event, sync = arguments[7:]
        return weights_pb2.BufferHandle(
            num_bytes=self.size,
            storage=storage,
            storage_bytes=num_bytes,
            storage_offset=offset,
            ref_counter=counter,
            ref_counter_offset=counter_offset,
            event=event,
            event_sync=sync,
        ).SerializeToString()

    def close(self) -> None:
        """Frees it; whoever has it open keeps it until they close it."""
        if self._file is not None:
            self._file.remove()


def _shareable(size: int, device: torch.device) -> torch.Tensor:
    """GPU memory that cudaIpcGetMemHandle accepts: from cudaMalloc, which expandable segments do not use."""
    expandable = any(EXPANDABLE in os.environ.get(name, "") for name in ALLOCATOR_VARIABLES)
    if not expandable:
        return torch.empty(size, dtype=torch.uint8, device=device)
    torch.cuda.empty_cache()  # or a cached block of such a segment would be handed out
    torch.cuda.memory._set_allocator_settings("expandable_segments:False")
    try:
        return torch.empty(size, dtype=torch.uint8, device=device)
    finally:
        torch.cuda.memory._set_allocator_settings(EXPANDABLE)


def _is_there(tensor: torch.Tensor) -> bool:
    return tensor.numel() == 0 or tensor.untyped_storage().nbytes() > 0


def _members(specs: Sequence[common_pb2.TensorSpec], size: int, first: int) -> Iterator[list[int]]:
    """Consecutive tensors from the first, as many as fit."""
    members: list[int] = []
    used = 0
    for index in range(first, len(specs)):
        num_bytes = aligned(specs[index].num_bytes)
        if members and used + num_bytes > size:
            yield members
            members, used = [], 0
        members.append(index)
        used += num_bytes
    if members:
        yield members


def digest(tensor: torch.Tensor) -> int:
    """The digest of a tensor's bytes, where they lie."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if len(flat) % 8:
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % 8))
    return long_word_digest(flat.view(torch.int64), partial(torch.arange, device=flat.device))


class HeldWeights:
    """What `ipc` and `nccl` have in common: versions are held where they are, and served when an engine asks."""

    def __init__(self, node: str, outbox: Outbox, server: WeightServer) -> None:
        self._node, self._outbox, self._server = node, outbox, server

    def write(self, version: int, layout: Layout, dtype: str, tensors: Iterable[NamedTensor]) -> Written:
        """Digests; the bytes stay where they are."""
        began = time.perf_counter()
        specs, size = self._outbox.hold(version, layout, dtype, tensors)
        shard = common_pb2.WeightShard(address=self._server.address, num_bytes=size, node=self._node)
        seconds = time.perf_counter() - began
        return Written([shard], specs, seconds, seconds)

    def retire(self, below_version: int) -> None:
        """Older versions are served no more."""
        self._outbox.retire(below_version)

    def close(self) -> None:
        """Ends the server and frees the buffer."""
        self._server.close()
        self._outbox.close()
