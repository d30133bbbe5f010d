"""Within a machine, from GPU memory to GPU memory: tensors go through one transfer buffer, bucket after bucket.

    engine                       this channel
    WeightRequest  --------->    fills the buffer with tensors, waits for the device
                   <---------    WeightBucket: which tensors lie where (and, first, how to open the buffer)
    copies, then BucketTaken ->  fills it again

The buffer is GPU memory shared by CUDA IPC; where the trainer computes on cores it is a file in shared memory. Nothing
else is allocated: tensors are read from the parameters themselves, which stay until the trainer lets go of its device.
Digests are computed on the device (common/weights.py, word_digest).
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch.multiprocessing.reductions import reduce_tensor

from crescendo.common.errors import RequestError
from crescendo.common.rpc.wire import Deadline, Wire
from crescendo.common.weights import SHM_FOLDER, aligned, word_digest
from crescendo.proto.v1 import common_pb2, weights_pb2
from crescendo.trainer.channels.base import Layout, NamedTensor, Written
from crescendo.trainer.channels.mapped import MappedFile, plan
from crescendo.trainer.channels.serving import WeightServer

BUCKET_BYTES = 256 << 20
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"


class IpcChannel:
    """Versions of one run on this machine. Owned by the trainer's rank that speaks."""

    name = "ipc"

    def __init__(self, run_id: str, node: str, token: str) -> None:
        self._run_id = run_id
        self._node = node
        self._versions: dict[int, tuple[list[common_pb2.TensorSpec], list[torch.Tensor]]] = {}
        self._buffer: TransferBuffer | None = None
        self._lock = threading.Lock()  # one engine at a time has the buffer
        self._server = WeightServer(self._answer, token=token, path=SHM_FOLDER / f"crescendo-{run_id}-ipc")

    def write(self, version: int, layout: Layout, dtype: str, tensors: Iterable[NamedTensor]) -> Written:
        """Digests; the bytes stay where they are."""
        began = time.perf_counter()
        specs, size = plan(layout, dtype)
        held = [tensor.data for tensor in tensors]
        for spec, tensor in zip(specs, held, strict=True):
            spec.digest = digest(tensor)
        with self._lock:
            self._versions[version] = (specs, held)
        shard = common_pb2.WeightShard(address=self._server.address, num_bytes=size, node=self._node)
        seconds = time.perf_counter() - began
        return Written([shard], specs, seconds, seconds)

    def retire(self, below_version: int) -> None:
        """Older versions are served no more."""
        with self._lock:
            for version in [v for v in self._versions if v < below_version]:
                del self._versions[version]

    def close(self) -> None:
        """Ends the server and frees the buffer."""
        self._server.close()
        with self._lock:
            self._versions.clear()
            if self._buffer is not None:
                self._buffer.close()
            self._buffer = None

    def _answer(self, wire: Wire, request: weights_pb2.WeightRequest, deadline: Deadline) -> None:
        with self._lock:
            found = self._versions.get(request.version)
            if found is None or not all(_is_here(tensor) for tensor in found[1]):
                kept = sorted(self._versions)
                raise RequestError(
                    f"weight version {request.version} is not served: the trainer has let go of it; there are "
                    f"{kept or 'none'}.",
                    field="version",
                    fix="Take the newest manifest while the trainer holds its device, or use the channel shm.",
                )
            self._send(wire, *found, deadline)

    def _send(
        self, wire: Wire, specs: Sequence[common_pb2.TensorSpec], held: Sequence[torch.Tensor], deadline: Deadline
    ) -> None:
        size = max(BUCKET_BYTES, max(aligned(spec.num_bytes) for spec in specs))
        size = min(size, sum(aligned(spec.num_bytes) for spec in specs))
        if self._buffer is None or self._buffer.size < size:
            if self._buffer is not None:
                self._buffer.close()
            self._buffer = TransferBuffer(size, held[0].device, SHM_FOLDER / f"crescendo-{self._run_id}-bucket")
        handle = self._buffer.handle().SerializeToString()
        buckets = list(_buckets(specs, self._buffer.size))
        for number, members in enumerate(buckets):
            offsets = self._buffer.fill([held[index] for index in members])
            bucket = weights_pb2.WeightBucket(
                handle=b"" if number else handle,
                tensors=members,
                offsets=offsets,
                num_bytes=offsets[-1] + aligned(specs[members[-1]].num_bytes),
                last=number == len(buckets) - 1,
            )
            wire.send(bucket, deadline)
            taken = wire.receive(weights_pb2.BucketTaken, deadline)
            if taken.error:
                raise RequestError(f"the engine gave up: {taken.error}", field="manifest")


class TransferBuffer:
    """Memory that another process opens by its handle. Its owner alone writes."""

    def __init__(self, size: int, device: torch.device, path: Path) -> None:
        self.size = size
        self._device = device
        self._file: MappedFile | None = None
        if device.type == "cpu":
            self._file = MappedFile.create(path, size)
            self._bytes = torch.frombuffer(self._file.mapping, dtype=torch.uint8)
        else:
            self._bytes = _shareable(size, device)

    def fill(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        """Copies tensors in, aligned, and waits for the device; returns their offsets."""
        offsets = []
        end = 0
        for tensor in tensors:
            num_bytes = tensor.numel() * tensor.element_size()
            target = self._bytes[end : end + num_bytes].view(tensor.dtype).view(tensor.shape)
            target.copy_(tensor)
            offsets.append(end)
            end += aligned(num_bytes)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return offsets

    def handle(self) -> weights_pb2.BufferHandle:
        """How another process opens it; of GPU memory a new one for each process that does."""
        if self._file is not None:
            return weights_pb2.BufferHandle(num_bytes=self.size, path=str(self._file.path))
        _, arguments = reduce_tensor(self._bytes)  # type: ignore[no-untyped-call]
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
        )

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


def _is_here(tensor: torch.Tensor) -> bool:
    """Whether its memory has not been let go (trainer/device.py empties storages)."""
    return tensor.numel() == 0 or tensor.untyped_storage().nbytes() > 0


def _buckets(specs: Sequence[common_pb2.TensorSpec], size: int) -> Iterator[list[int]]:
    """Consecutive tensors, as many as fit."""
    members: list[int] = []
    used = 0
    for index, spec in enumerate(specs):
        if members and used + aligned(spec.num_bytes) > size:
            yield members
            members, used = [], 0
        members.append(index)
        used += aligned(spec.num_bytes)
    if members:
        yield members


def digest(tensor: torch.Tensor) -> int:
    """word_digest of a tensor's bytes, where they lie."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    words = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int64)
    return word_digest(words, torch.arange(1, len(words) + 1, device=words.device))
