"""The engine's end of the channel `ipc`: takes a version bucket by bucket from the trainer's transfer buffer.

`BucketStream` lives for one weight update, on the thread and in the process that loads: the engine's own, or one of its
workers. Each bucket is copied once, so that the trainer fills the next while this one is loaded; digests are computed
over the copy, on the device.
"""

import mmap
import os
from collections.abc import Iterator

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from crescendo.common.errors import RequestError
from crescendo.common.rpc.wire import Deadline, connect, raise_error
from crescendo.common.weights import word_digest
from crescendo.proto.v1 import common_pb2, weights_pb2

STREAMED_CHANNELS = ("ipc",)
STREAM_S = 600.0  # a whole version


class BucketStream:
    """One version on its way. digests: of the tensors that came, in the manifest's order; complete at the end."""

    def __init__(self, manifest: common_pb2.WeightManifest, device: torch.device) -> None:
        self._manifest = manifest
        self._device = device
        self.digests = [0] * len(manifest.tensors)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors on the device; raises what the channel says, RequestError for a senseless bucket."""
        deadline = Deadline.after(STREAM_S)
        request = weights_pb2.WeightRequest.FromString(self._manifest.access)
        request.buckets.device = str(self._device)
        wire = connect(self._manifest.shards[0].address, deadline)
        buffer: torch.Tensor | None = None
        try:
            wire.send(request, deadline)
            last = False
            while not last:
                bucket = wire.receive(weights_pb2.WeightBucket, deadline)
                raise_error(bucket.error)
                last = bucket.last
                if buffer is None:
                    buffer = _open(weights_pb2.BufferHandle.FromString(bucket.handle), self._device)
                copied = buffer[: bucket.num_bytes].clone()
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                wire.send(weights_pb2.BucketTaken(), deadline)
                for index, offset in zip(bucket.tensors, bucket.offsets, strict=True):
                    yield self._tensor(copied, index, offset)
        finally:
            del buffer
            wire.close()

    def _tensor(self, copied: torch.Tensor, index: int, offset: int) -> tuple[str, torch.Tensor]:
        if not 0 <= index < len(self._manifest.tensors):
            raise RequestError(
                f"a bucket names tensor {index} of {len(self._manifest.tensors)}.", field="manifest.tensors"
            )
        spec = self._manifest.tensors[index]
        flat = copied[offset : offset + spec.num_bytes]
        if len(flat) != spec.num_bytes:
            raise RequestError(f"tensor {spec.name} does not lie in its bucket.", field="manifest.tensors")
        words = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int64)
        self.digests[index] = word_digest(words, torch.arange(1, len(words) + 1, device=words.device))
        return spec.name, flat.view(getattr(torch, spec.dtype)).view(tuple(spec.shape))


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
