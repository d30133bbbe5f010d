"""The tcp channel: bytes a second from the trainer's memory to an engine's shared memory, against a plain socket.

Ours asks for every bucket, with the fence and token checked, over the channel's own server, which is a process of its
own as the trainer is; the baseline sends the same bytes over one loopback connection between two processes into warm
memory, without asking for anything. Publishing (copy and digests, before) and the engine's digests (beside loading)
are in details. Run: make bench BENCH=tcp
"""

import argparse
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from crescendo.common.weights import tensor_digest
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.shards import map_shards, tensor_bytes
from crescendo.rollout.fetch import NodeCopy
from crescendo.trainer.channels import open_channel
from crescendo.trainer.megatron.weights import Exported
from tests.bench import harness

TOKEN = "bench"
TENSOR_VALUES = 4 << 20


def trainer(pipe: Connection, megabytes: int) -> None:
    """Publishes a new version at each word, until the last."""
    count = max(1, (megabytes << 20) // (4 * TENSOR_VALUES))
    given = [Exported(f"t{n}", (TENSOR_VALUES,), torch.full((TENSOR_VALUES,), float(n))) for n in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        channel = open_channel("tcp", run_id="bench", run_folder=Path(folder), threads=2, token=TOKEN)
        version = 0
        while pipe.recv():
            version += 1
            written = channel.write(version, [(e.name, e.shape) for e in given], "float32", iter(given))
            channel.retire(version)
            manifest = common_pb2.WeightManifest(
                version=version, channel="tcp", shards=written.shards, tensors=written.tensors, digest=version
            )
            pipe.send((manifest.SerializeToString(), written.seconds))
        channel.close()


def sender(port: int, size: int) -> None:
    """The baseline's other process: the same bytes, again and again."""
    data = memoryview(bytearray(size))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while connection.recv(1):
            connection.sendall(data)


class Rig:
    """Both sides, and what each round found."""

    def __init__(self, megabytes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._trainer = context.Process(target=trainer, args=(other, megabytes), daemon=True)
        self._trainer.start()
        self._copy = NodeCopy(f"bench-{os.getpid()}", TOKEN)
        self._publish()
        self.num_bytes = self._manifest.shards[0].num_bytes
        listener = socket.create_server(("127.0.0.1", 0))
        arguments = (listener.getsockname()[1], self.num_bytes)
        self._sender = context.Process(target=sender, args=arguments, daemon=True)
        self._sender.start()
        listener.settimeout(60)
        self._connection = listener.accept()[0]
        self._target = memoryview(bytearray(self.num_bytes))
        self.publish_s: list[float] = []
        self.digest_s: list[float] = []

    def _publish(self) -> float:
        self._pipe.send(True)
        raw, seconds = self._pipe.recv()
        self._manifest = common_pb2.WeightManifest.FromString(raw)
        return float(seconds)

    def ours(self) -> float:
        """Bytes a second of one version."""
        self.publish_s.append(self._publish())
        began = time.perf_counter()
        local = self._copy.localize(self._manifest, common_pb2.Fence(epoch=1), 120)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        shards = map_shards(local)
        found = [tensor_digest(tensor_bytes(shards, spec)) for spec in local.tensors]
        self.digest_s.append(time.perf_counter() - began)
        if found != [spec.digest for spec in local.tensors]:
            raise AssertionError("other bytes came than were sent")
        return self.num_bytes / seconds

    def baseline(self) -> float:
        """Bytes a second over a plain connection."""
        began = time.perf_counter()
        self._connection.sendall(b"x")
        received = 0
        while received < self.num_bytes:
            received += self._connection.recv_into(self._target[received:])
        return self.num_bytes / (time.perf_counter() - began)

    def close(self) -> None:
        self._pipe.send(False)
        self._connection.close()
        for process in (self._trainer, self._sender):
            process.join(20)
        self._copy.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=540, help="size of a version (default: SmolLM2 in float32)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="64 MB, three rounds")
    arguments = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    rig = Rig(64 if arguments.quick else arguments.megabytes)
    try:
        sides = {"ours": rig.ours, "baseline": rig.baseline}
        found = harness.take_turns(sides, 3 if arguments.quick else arguments.rounds, warmup=2)
    finally:
        rig.close()
    details = {
        "goal": "at least 0.7 of a plain socket",
        "megabytes": harness.rounded(rig.num_bytes / 1e6),
        "publish_s": harness.rounded(harness.median(rig.publish_s[2:])),
        "engine_digest_s": harness.rounded(harness.median(rig.digest_s[2:])),
    }
    ours, baseline = harness.median(found["ours"]), harness.median(found["baseline"])
    harness.report(harness.Measured("tcp", ours / 1e9, baseline / 1e9, "GB/s", details))


if __name__ == "__main__":
    sys.exit(main())
