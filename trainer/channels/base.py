"""The seam of the weight channels: how a version's bytes get where engines can read them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from crescendo.proto.v1 import common_pb2

Layout = Sequence[tuple[str, tuple[int, ...]]]


class NamedTensor(Protocol):
    """A full tensor under its Hugging Face name; data may have its first axis in two (megatron/weights.py)."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> torch.Tensor: ...


@dataclass
class Written:
    """A version in a channel. seconds: gathering and copying; digest_seconds: of them, hashing, over all threads."""

    shards: list[common_pb2.WeightShard] = field(default_factory=list)
    tensors: list[common_pb2.TensorSpec] = field(default_factory=list)
    seconds: float = 0.0
    digest_seconds: float = 0.0


class WeightChannel(Protocol):
    """One way for weights to travel. Used by publish.py on the rank that speaks."""

    name: str

    def write(self, version: int, layout: Layout, dtype: str, tensors: Iterable[NamedTensor]) -> Written:
        """Makes a version readable for engines; digests are computed where the bytes lie.

        layout: name and shape of each tensor, in the order in which they come.
        """
        ...

    def retire(self, below_version: int) -> None:
        """Frees what older versions hold."""
        ...

    def close(self) -> None:
        """Frees everything."""
        ...
