"""What the tests of the rollout service share: a tiny model, its weights as manifests, and a small driver.

The driver speaks gRPC to a service over a real Valkey, whichever engine runs inside.
"""

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from crescendo.buffer import EmbeddedServer, ExperienceBuffer, NewGroup, connect
from crescendo.common.config.load import save_resolved
from crescendo.common.config.rl import RlStepConfig, StageConfig
from crescendo.common.config.schema import (
    Config,
    DataConfig,
    DataSourceConfig,
    ScorerConfig,
    ScratchModelConfig,
    StepConfig,
)
from crescendo.common.models.scratch import write_scratch_model
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import ServiceSpec
from crescendo.common.types import GroupId, Trajectory, TrajectoryId, group_id, trajectory_id
from crescendo.common.weights import aligned, manifest_digest, tensor_digest
from crescendo.proto.v1 import common_pb2, rollout_pb2, rollout_pb2_grpc

VOCABULARY = "." + "0123456789abcdefghijklmnopqrstuvwxyz#=?>-" + "$"
EOS = len(VOCABULARY) - 1
PROMPT = [1, 5, 9, 12, 3, 20]
CALL_S = 60.0
HOST = """
import asyncio, sys
from crescendo.common.service import ServiceSpec
from crescendo.rollout.service import start
async def main():
    service = await start(ServiceSpec.from_json(sys.stdin.readline()))
    print("address", service.address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await service.stop(2.0)
asyncio.run(main())
"""
WEIGHT_SCALE = 8.0  # makes next-token distributions of a random model peaked, so that mistakes show


def write_model(folder: Path, seed: int = 0) -> Path:
    """A random Qwen3-shaped model: hidden 96, 3 layers, a vocabulary of 43 characters."""
    write_scratch_model(folder, scratch_shape(), seed)
    return folder


def scratch_shape() -> ScratchModelConfig:
    return ScratchModelConfig(vocabulary=VOCABULARY, max_positions=256)


def _clock_sum() -> DataSourceConfig:
    return DataSourceConfig(name="task", path="clock_sum", num_prompts=16, domain="math")


def run_config(engine: str) -> Config:
    """A run with one stage, as far as the rollout service reads it."""
    config = Config()
    config.run.name = "test"
    config.model.source = "scratch"
    config.model.scratch = scratch_shape()
    config.data = DataConfig(train=_clock_sum(), validation=_clock_sum(), max_prompt_tokens=56)
    config.rewards.chains = {"math": [ScorerConfig(scorer="exact_match")]}
    config.rollout.engine = engine
    config.rollout.kv_cache_gib = 0.25
    config.rollout.max_concurrency = 64
    config.rollout.threads = 2
    config.steps = [StepConfig(kind="rl", rl=RlStepConfig(stages=[StageConfig(name="a", max_response_tokens=200)]))]
    return config


def read_weights(folder: Path, seed: int) -> dict[str, "np.ndarray[Any, np.dtype[np.float32]]"]:
    """Weights with the shapes of the folder's model, other values for each seed."""
    shapes = {name: value.shape for name, value in load_file(folder / "model.safetensors").items()}
    draw = np.random.default_rng(seed)
    scale = {name: WEIGHT_SCALE * 0.02 if len(shape) > 1 else 0.1 for name, shape in shapes.items()}
    return {
        name: (draw.standard_normal(shape) * scale[name] + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def publish(
    weights: dict[str, "np.ndarray[Any, np.dtype[np.float32]]"], path: Path, version: int
) -> common_pb2.WeightManifest:
    """Writes a shard as the channel `disk` does, and its manifest."""
    offset = 0
    tensors = []
    with open(path, "wb") as file:
        for name, value in weights.items():
            data = np.ascontiguousarray(value).tobytes()
            file.seek(offset)
            file.write(data)
            tensors.append(
                common_pb2.TensorSpec(
                    name=name,
                    dtype="float32",
                    shape=value.shape,
                    offset=offset,
                    num_bytes=len(data),
                    digest=tensor_digest(data),
                )
            )
            offset += aligned(len(data))
        file.truncate(offset)
    return common_pb2.WeightManifest(
        version=version,
        channel="disk",
        shards=[common_pb2.WeightShard(address=str(path), num_bytes=offset)],
        tensors=tensors,
        digest=manifest_digest(tensors, [one.digest for one in tensors]),
    )


@dataclass
class Response:
    """What a stream said about one request."""

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: int = common_pb2.FINISH_REASON_UNSPECIFIED


@dataclass
class RolloutDriver:
    """A controller's view of one rollout service and its buffer."""

    client: Client[rollout_pb2_grpc.RolloutServiceStub]
    buffer: ExperienceBuffer
    fence: common_pb2.Fence
    folder: Path
    version: int = 0
    draws: "itertools.count[int]" = field(default_factory=itertools.count)

    async def update(self, manifest: common_pb2.WeightManifest, key: str = "") -> common_pb2.Attestation:
        """UpdateWeights without Admit."""
        request = rollout_pb2.UpdateWeightsRequest(fence=self.fence, manifest=manifest, idempotency_key=key)
        answer = await self.client.call(self.client.stub.UpdateWeights, request, timeout_s=CALL_S)
        return answer.attestation  # type: ignore[no-any-return]

    async def admit(self, version: int) -> None:
        request = rollout_pb2.AdmitRequest(fence=self.fence, version=version)
        await self.client.call(self.client.stub.Admit, request, timeout_s=CALL_S)

    async def serve(self, seed: int) -> common_pb2.WeightManifest:
        """Publishes, loads and admits the next version."""
        self.version += 1
        weights = read_weights(self.folder, seed)
        manifest = publish(weights, self.folder / f"weights-{self.version}", self.version)
        await self.update(manifest)
        await self.admit(self.version)
        return manifest

    async def open_group(self, samples: int, iteration: int, prompt: Sequence[int] = PROMPT) -> list[TrajectoryId]:
        """A group in the buffer; ids of its trajectories."""
        draw = next(self.draws)
        identity = group_id(0, iteration, draw)
        task = common_pb2.Prompt(prompt_id=f"p{draw}", token_ids=prompt, domain="math", gold_answers=["1"])
        await self.buffer.open_groups(self.fence, [NewGroup(identity, task, 0, iteration, "a", samples)])
        return [trajectory_id(GroupId(identity), sample) for sample in range(samples)]

    async def begin(self, iteration: int, **fields: Any) -> rollout_pb2.BeginRequest:
        """Begin with ordinary settings, which `fields` overrides."""
        request = begin_request(self.fence, iteration, self.version, **fields)
        await self.client.call(self.client.stub.Begin, request, timeout_s=CALL_S)
        return request

    async def pause(self, deadline_s: float = 20.0) -> rollout_pb2.RolloutProgress:
        request = rollout_pb2.PauseRequest(fence=self.fence, deadline_seconds=deadline_s)
        answer = await self.client.call(self.client.stub.Pause, request, timeout_s=deadline_s + 10)
        return answer.progress  # type: ignore[no-any-return]

    async def status(self) -> rollout_pb2.GetRolloutStatusResponse:
        request = rollout_pb2.GetRolloutStatusRequest()
        return await self.client.call(  # type: ignore[no-any-return]
            self.client.stub.GetStatus, request, timeout_s=CALL_S
        )

    async def until(
        self, condition: Callable[[rollout_pb2.GetRolloutStatusResponse], bool], timeout_s: float = 60.0
    ) -> rollout_pb2.GetRolloutStatusResponse:
        """Waits until the status meets the condition."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = await self.status()
            if condition(status):
                return status
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {status}"
            await asyncio.sleep(0.01)

    async def drained(self, timeout_s: float = 60.0) -> rollout_pb2.RolloutProgress:
        """Waits until the engine has nothing to do."""
        return (await self.until(lambda status: status.progress.drained, timeout_s)).progress

    async def roll_out(self, iteration: int, **fields: Any) -> rollout_pb2.RolloutProgress:
        """One whole phase."""
        await self.begin(iteration, **fields)
        await self.drained()
        return await self.pause()

    async def trajectories(self, ids: Sequence[TrajectoryId]) -> list[Trajectory]:
        return await self.buffer.load_trajectories(ids)

    async def generate(self, *requests: rollout_pb2.GenerateRequest) -> dict[str, Response]:
        """All answers of one stream."""

        async def send() -> AsyncIterator[rollout_pb2.GenerateRequest]:
            for request in requests:
                yield request

        answers: dict[str, Response] = {}
        async for message in self.client.stream(self.client.stub.Generate, send(), timeout_s=CALL_S):
            for delta in message.deltas:
                answer = answers.setdefault(delta.request_id, Response())
                answer.token_ids += delta.token_ids
                answer.log_probs += delta.log_probs
                answer.finish_reason = delta.finish_reason
        return answers

    async def score(self, *sequences: Sequence[int]) -> list[list[float]]:
        request = rollout_pb2.ScoreTokensRequest(
            sequences=[rollout_pb2.TokenSequence(token_ids=one) for one in sequences]
        )
        answer = await self.client.call(self.client.stub.ScoreTokens, request, timeout_s=CALL_S)
        return [list(one.log_probs) for one in answer.scores]


class ServiceProcess:
    """The service in a process of its own, started through its entry point; it ends when its stdin does."""

    def __init__(self, spec: ServiceSpec, log_file: Path) -> None:
        """Waits until the service is ready."""
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", HOST],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "GOMP_SPINCOUNT": "0"},
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(spec.to_json() + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("address "):
                self.address = line.split()[1]
                return
        raise AssertionError(f"the service did not start:\n{log_file.read_text()[-3000:]}")

    def stop(self) -> int:
        """The exit code."""
        self._process.communicate(timeout=60)
        return self._process.returncode


@contextlib.asynccontextmanager
async def served(engine: str, root: Path, options: dict[str, str]) -> AsyncIterator[RolloutDriver]:
    """A service over an engine, with a Valkey and a run folder of its own."""
    folder = RunFolder.create(root / "run", "test")
    save_resolved(run_config(engine), folder.config)
    server = EmbeddedServer(root / "valkey")
    spec = ServiceSpec(
        "rollout",
        "rollout-0",
        str(folder.root),
        folder.run_id(),
        "secret",
        buffer_url=server.start(),
        model_path=str(write_model(root / "model")),
        threads=2,
        options={"dummy": "1", **options},
    )
    process = await asyncio.to_thread(ServiceProcess, spec, root / "log")
    client = Client(Endpoint(process.address, "secret"), rollout_pb2_grpc.RolloutServiceStub)
    buffer = await connect(spec.buffer_url, spec.run_id)
    yield RolloutDriver(client, buffer, await buffer.acquire_epoch(), root / "model")
    await client.close()
    await buffer.close()
    assert await asyncio.to_thread(process.stop) == 0
    server.stop()


def begin_request(fence: common_pb2.Fence, iteration: int, version: int, **fields: Any) -> rollout_pb2.BeginRequest:
    settings: dict[str, Any] = {
        "sampling": common_pb2.Sampling(temperature=1.0, top_p=1.0),
        "max_response_tokens": 64,
        "max_concurrency": 16,
        "flush_tokens": 8,
        "flush_seconds": 1.0,
        "lease_seconds": 30.0,
        **fields,
    }
    return rollout_pb2.BeginRequest(fence=fence, iteration=iteration, weight_version=version, stage="a", **settings)


def request(
    name: str, max_tokens: int, *, prompt: Sequence[int] = PROMPT, temperature: float = 0.0, ignore_eos: bool = True
) -> rollout_pb2.GenerateRequest:
    return rollout_pb2.GenerateRequest(
        request_id=name,
        prompt_token_ids=prompt,
        max_tokens=max_tokens,
        sampling=common_pb2.Sampling(temperature=temperature, top_p=1.0),
        ignore_eos=ignore_eos,
    )
