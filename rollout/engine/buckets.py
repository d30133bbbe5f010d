"""The engine's end of the channels `ipc` and `nccl`: takes a version bucket by bucket from the trainer's publisher.

    ask -> a handle: open the publisher's buffer (ipc, or nccl on its own GPU), or a seat in a process group (nccl)
    each bucket -> copied from the buffer, or received by broadcast -> its tensors, while the next one is on its way

`BucketStream` lives for one weight update, on the thread and in the process that loads: the engine's own, or one of its
workers. Digests are computed over what came, on the device. When a round of broadcasts breaks because another engine
was lost, it asks again for what it lacks, and enters the next round.
"""

import mmap
import os
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from crescendo.common.broadcast import BroadcastGroup, watched
from crescendo.common.errors import RequestError, WorkerLostError
from crescendo.common.rpc.wire import Deadline, Wire, connect, raise_error
from crescendo.common.weights import long_word_digest
from crescendo.proto.v1 import common_pb2, weights_pb2

STREAM_S = 600.0  # a whole version
ROUNDS = 5  # that may break one after the other

Take = Callable[[weights_pb2.WeightBucket], torch.Tensor]


class BucketStream:
    """One version on its way. digests: of the tensors that came, in the manifest's order; complete at the end."""

    def __init__(self, manifest: common_pb2.WeightManifest, device: torch.device) -> None:
        self._manifest = manifest
        self._device = device
        self._taken = 0
        self.digests = [0] * len(manifest.tensors)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors on the device; raises what the channel says, RequestError for a senseless bucket."""
        deadline = Deadline.after(STREAM_S)
        for left in reversed(range(ROUNDS)):
            try:
                yield from self._round(deadline)
            except WorkerLostError:
                if not left:
                    raise
            else:
                return

    def _round(self, deadline: Deadline) -> Iterator[tuple[str, torch.Tensor]]:
        request = weights_pb2.WeightRequest.FromString(self._manifest.access)
        request.buckets.device = device_name(self._device)
        request.buckets.taken = self._taken
        wire = connect(self._manifest.shards[0].address, deadline)
        group: BroadcastGroup | None = None
        take: Take | None = None
        last = False
        try:
            wire.send(request, deadline)
            while not last:
                bucket = wire.receive(weights_pb2.WeightBucket, deadline)
                raise_error(bucket.error)
                if bucket.HasField("group"):
                    group = _enter(bucket.group, wire, deadline)
                    take = partial(_receive, group, bucket.group.backend, wire, deadline, self._device)
                elif bucket.handle:
                    buffer = _open(weights_pb2.BufferHandle.FromString(bucket.handle), self._device)
                    take = partial(_copy, buffer)
                if take is None:
                    raise RequestError(f"{wire.peer} sends a bucket before it says how to take it.", field="handle")
                taken = take(bucket) if bucket.tensors else None
                wire.send(weights_pb2.BucketTaken(), deadline)
                last = bucket.last
                if taken is not None:
                    yield from self._new_in(bucket, taken)
        finally:
            del take
            if group is not None:
                group.close(broken=not last)
            wire.close()

    def _new_in(self, bucket: weights_pb2.WeightBucket, taken: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The bucket's tensors but those that came in a round before."""
        for index, offset in zip(bucket.tensors, bucket.offsets, strict=True):
            if not 0 <= index < len(self._manifest.tensors):
                raise RequestError(
                    f"a bucket names tensor {index} of {len(self._manifest.tensors)}.", field="manifest.tensors"
                )
            if index >= self._taken:
                self._taken = index + 1
                yield self._tensor(taken, index, offset)

    def _tensor(self, taken: torch.Tensor, index: int, offset: int) -> tuple[str, torch.Tensor]:
        spec = self._manifest.tensors[index]
        flat = taken[offset : offset + spec.num_bytes]
        if len(flat) != spec.num_bytes:
            raise RequestError(f"tensor {spec.name} does not lie in its bucket.", field="manifest.tensors")
        whole = torch.nn.functional.pad(flat, (0, -len(flat) % 8)) if len(flat) % 8 else flat
        self.digests[index] = long_word_digest(whole.view(torch.int64), partial(torch.arange, device=flat.device))
        return spec.name, flat.view(getattr(torch, spec.dtype)).view(tuple(spec.shape))


def device_name(device: torch.device) -> str:
    """The UUID of a GPU, by which the publisher knows its own; else "cpu"."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"


def _copy(buffer: torch.Tensor, bucket: weights_pb2.WeightBucket) -> torch.Tensor:
    """What is in the publisher's buffer now; copied, so that it can be filled again."""
    copied = buffer[: bucket.num_bytes].clone()
    if copied.device.type == "cuda":
        torch.cuda.synchronize(copied.device)
    return copied


def _enter(handle: weights_pb2.GroupHandle, wire: Wire, deadline: Deadline) -> BroadcastGroup:
    limit = _step(handle.timeout_seconds, deadline)
    host = str(wire.socket.getsockname()[0])
    return watched(lambda: BroadcastGroup(torch, handle, own_host=host), [wire], _heard, limit, answers=False)


def _receive(
    group: BroadcastGroup,
    backend: str,
    wire: Wire,
    deadline: Deadline,
    device: torch.device,
    bucket: weights_pb2.WeightBucket,
) -> torch.Tensor:
    """What is broadcast now, into memory of its own; over the host where the group has no NCCL."""
    data = torch.empty(bucket.num_bytes, dtype=torch.uint8, device=device if backend == "nccl" else "cpu")
    watched(lambda: group.broadcast(data), [wire], _heard, deadline, answers=False)
    return data.to(device)


def _step(seconds: float, deadline: Deadline) -> Deadline:
    return Deadline.after(min(seconds, deadline.remaining_s))


def _heard(wire: Wire) -> None:
    """The publisher says something in the middle of a step: that the round broke."""
    message = wire.receive(weights_pb2.WeightBucket, Deadline.after(1.0))
    raise_error(message.error)
    raise RequestError(f"{wire.peer} sends a bucket before the last one was taken.", field="tensors")


def _open(handle: weights_pb2.BufferHandle, device: torch.device) -> torch.Tensor:
    """The trainer's buffer in this process, [num_bytes] uint8; on cores it is copied from a file's mapping."""
    if handle.path:
        descriptor = os.open(handle.path, os.O_RDWR)
        try:
            return torch.frombuffer(mmap.mmap(descriptor, handle.num_bytes), dtype=torch.uint8)
        finally:
            os.close(descriptor)
    index = device.index if device.index is not None else torch.cuda.current_device()
    opened: torch.Tensor = rebuild_cuda_tensor(  # type: ignore[no-untyped-call]
        torch.Tensor,
        torch.Size([handle.num_bytes]),
        (1,),
        0,
        torch.storage.TypedStorage,
        torch.uint8,
        index,
        handle.storage,
        handle.storage_bytes,
        handle.storage_offset,
        False,
        handle.ref_counter,
        handle.ref_counter_offset,
        handle.event,
        handle.event_sync,
    )
    return opened
