"""The bytes of a published weight version, mapped into this process.

The channels `shm` and `disk` share one layout: a shard is a file, a tensor lies at an offset of it
(TensorSpec). Whoever computes digests and whoever loads get the same mapping while either holds it, so that
its pages are faulted in once; those of shared memory stay mapped for the versions that reuse them. Mapping is
done on the event loop's helper threads and on the engine's: the worst of a race is a second mapping.
"""

import math
import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from crescendo.common.errors import RequestError
from crescendo.common.weights import SHM_FOLDER
from crescendo.proto.v1 import common_pb2

FILE_CHANNELS = ("shm", "disk")
STREAMED_CHANNELS = ("ipc", "nccl")  # by the engine itself: buckets.py
READ_CHANNELS = (*FILE_CHANNELS, *STREAMED_CHANNELS)
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class MappedShard:
    """One shard's bytes, read-only; unmapped when the last reference goes."""

    def __init__(self, path: str, num_bytes: int) -> None:
        """Raises RequestError when the file is missing or shorter than num_bytes."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise RequestError(
                f"weight shard {path} cannot be opened: {error.strerror}.",
                field="manifest.shards.address",
                fix="Publish the version again; channels shm and disk need the trainer's file on this node.",
            ) from None
        try:
            size = os.fstat(descriptor).st_size
            if size < num_bytes or num_bytes <= 0:
                raise RequestError(
                    f"weight shard {path} has {size} bytes, and the manifest says {num_bytes}.",
                    field="manifest.shards.num_bytes",
                    fix="Publish the version again.",
                )
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            self.view = memoryview(mmap.mmap(descriptor, num_bytes, flags=flags, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)


_Key = tuple[int, int, int]
_mapped: WeakValueDictionary[_Key, MappedShard] = WeakValueDictionary()
_warm: "OrderedDict[_Key, MappedShard]" = OrderedDict()


def map_shard(path: str, num_bytes: int) -> MappedShard:
    """The mapping of a shard; shared while somebody holds it and the file is the same one."""
    key = _key(path, num_bytes)
    found = _mapped.get(key)
    if found is None:
        found = MappedShard(path, num_bytes)
        _mapped[key] = found
    return found


def _key(path: str, num_bytes: int) -> _Key:
    """The file behind the path: the shm channel renames one file from version to version."""
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1, num_bytes)
    return (status.st_dev, status.st_ino, num_bytes)


def _keep_warm(shards: Sequence[common_pb2.WeightShard]) -> None:
    """Holds on to the shared-memory files of the last two versions, between which the channel alternates."""
    for shard in shards:
        key = _key(shard.address, shard.num_bytes)
        found = _mapped.get(key)
        if found is not None and Path(shard.address).parent == SHM_FOLDER:
            _warm[key] = found
            _warm.move_to_end(key)
    while len(_warm) > 2 * len(shards):
        _warm.popitem(last=False)


def check_manifest(manifest: common_pb2.WeightManifest) -> None:
    """Raises RequestError unless every tensor lies inside its shard and its size fits its shape."""
    if manifest.channel not in READ_CHANNELS:
        raise RequestError(
            f"manifest.channel is {manifest.channel!r}; this engine reads {', '.join(READ_CHANNELS)}.",
            field="manifest.channel",
            fix="Set trainer.weight_channel to one of them.",
        )
    if manifest.version <= 0:
        raise RequestError(f"manifest.version is {manifest.version}; it must be positive.", field="manifest.version")
    for tensor in manifest.tensors:
        if tensor.dtype not in ITEM_BYTES or not 0 <= tensor.shard < len(manifest.shards):
            raise RequestError(
                f"tensor {tensor.name} has type {tensor.dtype!r} in shard {tensor.shard} of {len(manifest.shards)}.",
                field="manifest.tensors",
            )
        expected = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
        end = tensor.offset + tensor.num_bytes
        if tensor.num_bytes != expected or tensor.offset < 0 or end > manifest.shards[tensor.shard].num_bytes:
            raise RequestError(
                f"tensor {tensor.name} of shape {list(tensor.shape)} takes {expected} bytes; the manifest puts "
                f"{tensor.num_bytes} at {tensor.offset} of a shard of {manifest.shards[tensor.shard].num_bytes}.",
                field="manifest.tensors",
            )


def map_shards(manifest: common_pb2.WeightManifest) -> list[MappedShard]:
    """All shards of a checked manifest."""
    shards = [map_shard(shard.address, shard.num_bytes) for shard in manifest.shards]
    _keep_warm(manifest.shards)
    return shards


def tensor_bytes(shards: list[MappedShard], tensor: common_pb2.TensorSpec) -> memoryview:
    """The bytes of one tensor."""
    return shards[tensor.shard].view[tensor.offset : tensor.offset + tensor.num_bytes]
