"""Seconds from publishing a weight version to its admission, against vLLM's plain shared-memory update.

`make bench BENCH=sync` prints one JSON line. Both sides move the same bytes (SmolLM2-135M's shape, 538 MB) into
the same vLLM engine, in turns. Ours: copy into shared memory with digests, UpdateWeights over gRPC (digests
again, load, canaries), Admit. Baseline: the same copy without digests, then start_weight_update, update_weights
and finish_weight_update with a plain transfer engine, no digest, no canary. `ratio` is baseline over ours: the
target is 0.9. The details account for where the time goes, and compare with a bare memcpy of the bytes.
"""

import argparse
import asyncio
import contextlib
import mmap
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from crescendo.common.config.schema import Config
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.service import ServiceSpec
from crescendo.common.weights import SHM_FOLDER, aligned, manifest_digest
from crescendo.proto.v1 import common_pb2, rollout_pb2, rollout_pb2_grpc
from crescendo.rollout.engine.base import Engine
from crescendo.rollout.service import RolloutServer, start_with
from tests.bench import harness
from tests.bench.rollout_rig import SMOL, TINY, Weights, random_weights, write_folder

NUM_CANARIES = 4
CANARY_TOKENS = 16
CHUNK_BYTES = 1 << 19
FENCE = common_pb2.Fence(epoch=1)


class Publisher:
    """Copies weights into one of two warm shared-memory files, as the trainer's shm channel does."""

    def __init__(self, weights: Weights, name: str, threads: int) -> None:
        self._weights = weights
        self._pool = ThreadPoolExecutor(threads)
        self.tensors: list[common_pb2.TensorSpec] = []
        offset = 0
        for tensor, value in weights.items():
            spec = common_pb2.TensorSpec(
                name=tensor, dtype="float32", shape=value.shape, offset=offset, num_bytes=value.nbytes
            )
            self.tensors.append(spec)
            offset += aligned(value.nbytes)
        self.num_bytes = offset
        self.paths = [SHM_FOLDER / f"crescendo-bench-{os.getpid()}-{name}-{number}" for number in range(2)]
        self._files = [self._create(path) for path in self.paths]

    def _create(self, path: Path) -> mmap.mmap:
        with path.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, self.num_bytes)
            return mmap.mmap(file.fileno(), self.num_bytes)

    def publish(self, version: int, *, digests: bool) -> common_pb2.WeightManifest:
        """Copies everything; with digests, hashes each chunk while it is in the cache."""
        file = self._files[version % 2]
        jobs = [
            self._pool.submit(_copy, value, file, spec, digests)
            for value, spec in zip(self._weights.values(), self.tensors, strict=True)
        ]
        found = [job.result() for job in jobs]
        manifest = common_pb2.WeightManifest(version=version, channel="shm", tensors=self.tensors)
        manifest.shards.add(address=str(self.paths[version % 2]), num_bytes=self.num_bytes)
        if digests:
            for spec, digest in zip(manifest.tensors, found, strict=True):
                spec.digest = digest
            manifest.digest = manifest_digest(manifest.tensors, found)
        return manifest

    def close(self) -> None:
        for path in self.paths:
            path.unlink(missing_ok=True)
        self._pool.shutdown()


def _copy(value: "np.ndarray[Any, Any]", file: mmap.mmap, spec: common_pb2.TensorSpec, digest: bool) -> int:
    source = value.reshape(-1).view(np.uint8)
    target = np.frombuffer(file, dtype=np.uint8, count=spec.num_bytes, offset=spec.offset)
    state = xxhash.xxh3_64()
    for start in range(0, spec.num_bytes, CHUNK_BYTES):
        part = target[start : start + CHUNK_BYTES]
        np.copyto(part, source[start : start + CHUNK_BYTES])
        if digest:
            state.update(part.data)
    return int(state.intdigest())


def make_plain_loader() -> type[Any]:
    """A shared-memory transfer engine as one writes it first: vLLM's layerwise reload, tied head packed again."""
    import torch
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    class PlainLoader(WeightTransferEngine):  # type: ignore[misc]
        def init_transfer_engine(self, init_info: object) -> None:
            pass

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.receive_weights(update_info)

        def receive_weights(self, update_info: dict[str, Any]) -> None:
            with open(update_info["path"], "r+b") as file:
                mapping = mmap.mmap(file.fileno(), 0)
            self.model.load_weights(self._views(mapping, update_info["tensors"]))

        def _views(self, mapping: mmap.mmap, tensors: Any) -> Iterator[tuple[str, Any]]:
            data = torch.frombuffer(mapping, dtype=torch.uint8)
            for one in tensors:
                flat = data[one.offset : one.offset + one.num_bytes].view(torch.float32)
                yield one.name, flat.view(tuple(one.shape))

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)
            for module in self.model.modules():
                weight = getattr(module, "weight", None)
                if hasattr(module, "cpu_linear") and weight is not None and weight.numel():
                    module.quant_method.process_weights_after_loading(module)

        def shutdown(self) -> None:
            pass

    return PlainLoader


@dataclass
class Rig:
    """Both sides over one engine."""

    server: RolloutServer
    client: Client[rollout_pb2_grpc.RolloutServiceStub]
    publisher: Publisher
    canaries: list[common_pb2.Canary]
    version: int = 0

    async def ours(self) -> dict[str, float]:
        """Publish to admitted."""
        self.version += 1
        began = time.perf_counter()
        manifest = await asyncio.to_thread(self.publisher.publish, self.version, digests=True)
        manifest.canaries.extend(self.canaries)
        published = time.perf_counter()
        request = rollout_pb2.UpdateWeightsRequest(fence=FENCE, manifest=manifest)
        attestation = (await self.client.call(self.client.stub.UpdateWeights, request, timeout_s=300)).attestation
        if attestation.digest != manifest.digest:
            raise AssertionError("the engine attests other bytes than were published")
        admit = rollout_pb2.AdmitRequest(fence=FENCE, version=self.version)
        await self.client.call(self.client.stub.Admit, admit, timeout_s=30)
        total = time.perf_counter() - began
        found = {
            "publish_s": published - began,
            "load_s": attestation.load_seconds,
            "canary_s": attestation.canary_seconds,
        }
        rest = total - sum(found.values())
        return {"total_s": total, **found, "rest_s": rest, "digest_beside_load_s": attestation.digest_seconds}

    async def baseline(self, loader: type[Any]) -> dict[str, float]:
        """The same bytes by the plain engine."""
        self.version += 1
        began = time.perf_counter()
        manifest = await asyncio.to_thread(self.publisher.publish, self.version, digests=False)
        published = time.perf_counter()
        update = {"path": manifest.shards[0].address, "tensors": list(manifest.tensors)}
        await self.server._engine.call(lambda engine: plain_update(engine, loader, update), 300)
        return {"total_s": time.perf_counter() - began, "publish_s": published - began}

    def memcpy(self) -> float:
        """One thread, into warm memory."""
        source = np.frombuffer(self.publisher._files[0], dtype=np.uint8)
        began = time.perf_counter()
        np.copyto(self._target(source), source)
        return time.perf_counter() - began

    def _target(self, source: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        if not hasattr(self, "_warm_target"):
            self._warm_target = np.empty_like(source)
            self._warm_target.fill(1)
        return self._warm_target


def plain_update(engine: Engine, loader: type[Any], update: dict[str, Any]) -> None:
    """vLLM's three calls with another transfer engine in the worker's place, on the engine's thread."""
    llm: Any = engine._llm  # type: ignore[attr-defined]
    worker = llm.model_executor.driver_worker
    worker = getattr(worker, "worker", worker)
    ours = worker.weight_transfer_engine
    worker.weight_transfer_engine = loader(ours.config, ours.vllm_config, ours.device, ours._default_model)
    try:
        llm.collective_rpc("start_weight_update")
        llm.collective_rpc("update_weights", kwargs={"update_info": update})
        llm.collective_rpc("finish_weight_update")
        llm.reset_prefix_cache()
    finally:
        worker.weight_transfer_engine = ours


@contextlib.asynccontextmanager
async def rigged(shape: dict[str, Any], threads: int) -> Any:
    """The service over vLLM, in this process."""
    config = Config()
    config.rollout.kv_cache_gib = 0.5
    config.rollout.max_concurrency = 16
    with tempfile.TemporaryDirectory() as root:
        folder = write_folder(Path(root) / "model", shape)
        spec = ServiceSpec(
            "rollout", "bench", "", "bench", "t", model_path=str(folder), threads=threads, options={"dummy": "1"}
        )
        server = await start_with(spec, config, None)
        client = Client(Endpoint(server.address, "t"), rollout_pb2_grpc.RolloutServiceStub)
        publisher = Publisher(random_weights(shape), "sync", threads)
        draw = np.random.default_rng(1)
        canaries = [
            common_pb2.Canary(token_ids=draw.integers(0, shape["vocab_size"], CANARY_TOKENS))
            for _ in range(NUM_CANARIES)
        ]
        try:
            yield Rig(server, client, publisher, canaries)
        finally:
            publisher.close()
            await client.close()
            await server.stop(1)


async def run(shape: dict[str, Any], rounds: int, threads: int) -> harness.Measured:
    async with rigged(shape, threads) as rig:
        loader = make_plain_loader()
        ours: list[dict[str, float]] = []
        baseline: list[dict[str, float]] = []
        copies: list[float] = []
        for number in range(rounds + 2):  # two rounds warm both files and both paths
            for side in ("ours", "baseline") if number % 2 == 0 else ("baseline", "ours"):
                found = await (rig.ours() if side == "ours" else rig.baseline(loader))
                (ours if side == "ours" else baseline).append(found)
            copies.append(rig.memcpy())
            harness.progress(f"round {number}: {ours[-1]} {baseline[-1]} memcpy {copies[-1]:.3f} s")
        account = {name: harness.rounded(harness.median([one[name] for one in ours[2:]])) for name in ours[0]}
        plain = {name: harness.rounded(harness.median([one[name] for one in baseline[2:]])) for name in baseline[0]}
        memcpy_s = harness.median(copies[2:])
        details = {
            "megabytes": harness.rounded(rig.publisher.num_bytes / 1e6),
            "ours_s": account,
            "baseline_s": plain,
            "memcpy_s": harness.rounded(memcpy_s),
            "ours_over_memcpy": harness.rounded(account["total_s"] / memcpy_s),
            "canaries": f"{NUM_CANARIES} x {CANARY_TOKENS} tokens",
            "rounds": rounds,
        }
        # Updates a second, so that ours over baseline is the baseline's time over ours.
        rate = 1 / account["total_s"]
        return harness.Measured("sync", rate, 1 / plain["total_s"], "updates/s", details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the quick start's tiny model, three rounds")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    warnings.simplefilter("ignore")
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    harness.report(asyncio.run(run(TINY if arguments.quick else SMOL, rounds, arguments.threads)))


if __name__ == "__main__":
    main()
