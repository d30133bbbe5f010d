"""What the tests of the weight channels share: tensors, both ends of a channel, and an engine's end as a process."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from crescendo.common.weights import manifest_digest, tensor_digest
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.arriving import Arriving
from crescendo.rollout.engine.shards import check_manifest, map_shards, tensor_bytes
from crescendo.rollout.fetch import NodeCopy
from crescendo.trainer.channels import WeightChannel
from crescendo.trainer.megatron.weights import Exported

RUN = f"channel-contract-{os.getpid()}"  # of this process: tests run in several, and a channel clears what its run left
_KEPT: list[object] = []
TOKEN = "secret"
FENCE = common_pb2.Fence(epoch=3, counter=5)


def tensors(seed: int, dtype: torch.dtype = torch.float32, rows: int = 1000) -> list[Exported]:
    """Plain tensors, and one as a split of fused queries, keys and values gives it: not contiguous."""
    torch.manual_seed(seed)
    grouped = torch.randn(2, 6, 5).to(dtype)[:, :4]
    plain = [torch.randn(rows, 300).to(dtype), torch.randn(7).to(dtype), torch.randn(3, 3).to(dtype)]
    made = [Exported(f"t{i}", tuple(each.shape), each) for i, each in enumerate(plain)]
    return [*made, Exported("grouped", (8, 5), grouped)]


def publish(channel: WeightChannel, version: int, given: Sequence[Exported]) -> common_pb2.WeightManifest:
    """Writes a version and describes it, as trainer/publish.py does."""
    dtype = str(given[0].data.dtype).removeprefix("torch.")
    written = channel.write(version, [(each.name, each.shape) for each in given], dtype, iter(given))
    return common_pb2.WeightManifest(
        version=version,
        channel=channel.name,
        shards=written.shards,
        tensors=written.tensors,
        digest=manifest_digest(written.tensors, [spec.digest for spec in written.tensors]),
    )


@dataclass
class Taken:
    """What an engine's end has after a fetch."""

    tensors: dict[str, torch.Tensor]
    digests: list[int]

    def equals(self, given: Sequence[Exported]) -> bool:
        return all(torch.equal(self.tensors[one.name], one.data.reshape(one.shape)) for one in given)


def take(
    manifest: common_pb2.WeightManifest,
    *,
    copy: NodeCopy | None = None,
    fence: common_pb2.Fence = FENCE,
    token: str = TOKEN,
    run: str = RUN,
    deadline_s: float = 20.0,
) -> Taken:
    """Fetches a version as rollout/weights.py does, and computes digests where the bytes lie."""
    node = copy or NodeCopy(run, token)
    try:
        local = node.localize(manifest, fence, deadline_s)
        check_manifest(local)
        if local.access:
            arriving = Arriving(local, torch.device("cpu"))
            streamed = dict(arriving.tensors())
            return Taken(streamed, arriving.digests or [])
        shards = map_shards(local)
        found = {}
        for spec in local.tensors:
            raw = np.frombuffer(tensor_bytes(shards, spec), dtype=np.uint8).copy()
            found[spec.name] = torch.from_numpy(raw).view(getattr(torch, spec.dtype)).view(tuple(spec.shape))
        return Taken(found, [tensor_digest(tensor_bytes(shards, spec)) for spec in local.tensors])
    finally:
        if copy is None:
            node.close()


def begin_and_stay(manifest: common_pb2.WeightManifest, run: str, stay_s: float) -> None:
    """Takes the first tensor that streams in, says so, and stays without taking another, until the process ends."""
    stream = Arriving(NodeCopy(run, TOKEN).localize(manifest, FENCE, 20.0), torch.device("cpu")).tensors()
    _KEPT.append(stream)
    print(next(stream)[0], flush=True)
    time.sleep(stay_s)


def main() -> None:
    """An engine's end as a process: reads a manifest's file, fetches it, prints the digest of the version."""
    manifest = common_pb2.WeightManifest.FromString(Path(sys.argv[1]).read_bytes())
    if sys.argv[3:]:
        return begin_and_stay(manifest, sys.argv[2], float(sys.argv[3]))
    taken = take(manifest, run=sys.argv[2])
    print(f"{manifest_digest(manifest.tensors, taken.digests):016x}", flush=True)
    return None


if __name__ == "__main__":
    main()
