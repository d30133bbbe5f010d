"""The tensors of a manifest as they come to an engine, whichever channel they come by. One for each weight update."""

import warnings
from collections.abc import Iterator

import torch

from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.buckets import BucketStream
from crescendo.rollout.engine.shards import STREAMED_CHANNELS, map_shards, tensor_bytes


class Arriving:
    """Tensors of files are views of their mapping, read-only; those that are streamed are the engine's own copies."""

    def __init__(self, manifest: common_pb2.WeightManifest, device: torch.device) -> None:
        self._manifest = manifest
        self._device = device
        self._stream = BucketStream(manifest, device) if manifest.channel in STREAMED_CHANNELS else None

    @property
    def digests(self) -> list[int] | None:
        """Of what was streamed, in the manifest's order, once all has come; None for files."""
        return self._stream.digests if self._stream is not None else None

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors on the device."""
        if self._stream is not None:
            yield from self._stream.tensors()
            return
        shards = map_shards(self._manifest)
        for spec in self._manifest.tensors:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the mapping is read-only, and nothing writes to it
                flat = torch.frombuffer(tensor_bytes(shards, spec), dtype=getattr(torch, spec.dtype))
            yield spec.name, flat.view(tuple(spec.shape)).to(self._device)
