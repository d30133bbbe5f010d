"""A trainer service in this process with a real buffer beside it, and experience to train on."""

import asyncio
import dataclasses
import math
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crescendo.buffer import EmbeddedServer, ExperienceBuffer, NewGroup, Scored, Update, connect
from crescendo.common import failpoints
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.service import RunningService, ServiceSpec
from crescendo.common.types import GroupId, Segment, TrajectoryId, TrajectoryState
from crescendo.proto.v1 import common_pb2, trainer_pb2, trainer_pb2_grpc
from crescendo.trainer.service import start

TIMEOUT_S = 60.0
VOCAB = 61


@dataclass
class Rig:
    """A running trainer with its client, its buffer and the fence to use."""

    service: RunningService
    client: Client[trainer_pb2_grpc.TrainerServiceStub]
    buffer: ExperienceBuffer
    fence: common_pb2.Fence
    folder: Path
    followers: list[asyncio.subprocess.Process] = field(default_factory=list)
    drawn: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    async def call(self, method: str, request: Any, timeout_s: float = TIMEOUT_S) -> Any:
        """Calls a method, with the rig's fence where the request takes one and has none."""
        if "fence" in request.DESCRIPTOR.fields_by_name and not request.HasField("fence"):
            request.fence.CopyFrom(self.fence)
        return await self.client.call(getattr(self.client.stub, method), request, timeout_s=timeout_s)

    async def sft(self, request: trainer_pb2.TrainSftRequest) -> list[trainer_pb2.TrainSftResponse]:
        """Trains a supervised chunk."""
        request.fence.CopyFrom(self.fence)
        stream = self.client.stream(self.client.stub.TrainSft, request, timeout_s=TIMEOUT_S)
        return [report async for report in stream]

    async def experience(
        self,
        *,
        groups: int = 2,
        samples: int = 4,
        version: int = 1,
        lengths: Sequence[int] = (12, 20),
        finish: common_pb2.FinishReason.ValueType = common_pb2.FINISH_REASON_STOP,
        log_probs: Sequence[float] | None = None,
    ) -> list[trainer_pb2.TrainGroup]:
        """Finished groups of random tokens with alternating rewards."""
        result = []
        for _ in range(groups):
            self.drawn += 1
            name = GroupId(f"g{self.drawn}")
            prompt = common_pb2.Prompt(prompt_id=name, token_ids=self.rng.integers(1, VOCAB, 5).tolist())
            await self.buffer.open_groups(self.fence, [NewGroup(name, prompt, 0, 1, "s", samples)])
            claims = await self.buffer.claim(self.fence, "w", limit=samples, lease_s=60, iteration=1, max_spans=3)
            ids = [claim.trajectory.trajectory_id for claim in claims]
            updates = [self._update(each, version, lengths, finish) for each in ids]
            await self.buffer.flush(self.fence, "w", updates)
            component = common_pb2.RewardComponent(name="answer", raw=1.0, weight=1.0)
            await self.buffer.claim_finished(self.fence, limit=samples, wait_s=0.1)
            await self.buffer.score(self.fence, [Scored(each, (component,)) for each in ids])
            rewards = [float(i % 2) for i in range(samples)]
            result.append(trainer_pb2.TrainGroup(group_id=name, trajectory_ids=ids, rewards=rewards))
        return result

    def _update(
        self, trajectory: TrajectoryId, version: int, lengths: Sequence[int], finish: common_pb2.FinishReason.ValueType
    ) -> Update:
        count = int(self.rng.integers(lengths[0], lengths[1] + 1))
        segment = Segment(
            weight_version=version,
            iteration=1,
            stage="s",
            branch=0,
            token_ids=self.rng.integers(0, VOCAB, count).astype(np.int32),
            log_probs=np.full(count, -4.0, dtype=np.float32),
            loss_mask=np.ones(count, dtype=np.bool_),
        )
        return Update(trajectory, 0, segment, TrajectoryState.FINISHED, finish)


def batch(groups: Sequence[trainer_pb2.TrainGroup], *, parent: int, **changes: Any) -> trainer_pb2.TrainBatch:
    """A mirror-descent batch in one mini-batch, optimizer reset."""
    made = trainer_pb2.TrainBatch(
        branch=0,
        iteration=1,
        stage="s",
        parent_version=parent,
        new_version=parent + 1,
        groups=groups,
        algorithm=trainer_pb2.Algorithm(
            name="mirror_descent", parameters={"tau": 1.0}, options={"aggregation": "token_mean"}
        ),
        learning_rate=trainer_pb2.LearningRate(peak=1e-3, schedule="constant"),
        optimizer=trainer_pb2.AdamW(beta1=0.9, beta2=0.95, epsilon=1e-8, clip_grad_norm=1.0),
        num_mini_batches=1,
        max_tokens_per_micro_batch=256,
        reset_optimizer=True,
        truncated="zero",
        importance_cap=2.0,
        old_segments="train",
        seed=3,
        temperature=1.0,
    )
    made.MergeFrom(trainer_pb2.TrainBatch(**changes))
    return made


def sft_request(count: int, *, batch_size: int = 4, version: int = 1, key: str = "") -> trainer_pb2.TrainSftRequest:
    """A chunk of examples that repeat one pattern, which a model learns at once."""
    rng = np.random.default_rng(1)
    examples = []
    for _ in range(count):
        digit = int(rng.integers(2, 10))
        length = int(rng.integers(4, 12))
        examples.append(
            trainer_pb2.SftExample(prompt_token_ids=[1, digit], response_token_ids=[digit + 1] * length + [0])
        )
    return trainer_pb2.TrainSftRequest(
        idempotency_key=key,
        examples=examples,
        batch_size=batch_size,
        learning_rate=trainer_pb2.LearningRate(peak=1e-2, schedule="constant"),
        optimizer=trainer_pb2.AdamW(beta1=0.9, beta2=0.95, epsilon=1e-8, clip_grad_norm=1.0),
        max_tokens_per_micro_batch=512,
        weight_version=version,
    )


@asynccontextmanager
async def running(
    folder: Path, model: Path, *, store: Mapping[str, str] | None = None, deaths: str = "", **options: int | str
) -> AsyncIterator[Rig]:
    """Starts Valkey and a trainer gang (rank 0 in this process), loads the model as version 1.

    store: the spec's fields for a checkpoint store; each rank then has a run folder of its own, as on machines of their
    own; deaths: failpoints of the other ranks; options: sizes of the layout and other options of the trainer, by name.
    """
    server = EmbeddedServer(folder / "buffer")
    server.start()
    sizes = ("tensor_parallel", "pipeline_parallel", "context_parallel", "data_parallel")
    world_size = math.prod(int(options.get(size, 1)) for size in sizes)
    spec = ServiceSpec(
        role="trainer",
        worker_id="trainer-0",
        run_folder=str(folder),
        run_id=f"test-{folder.name}-{world_size}",
        token="secret",
        buffer_url=server.url,
        world_size=world_size,
        rendezvous=f"127.0.0.1:{_free_port()}",
        threads=2 if world_size == 1 else 1,
        model_path=str(model),
        options={
            "collective_timeout_s": "30",
            "start_timeout_s": "60",
            **{name: str(value) for name, value in options.items()},
        },
        **(store or {}),
    )

    followers = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("trainer_follower.py")),
            _of_rank(spec, rank).to_json(),
            env={**os.environ, "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": "1", failpoints.VARIABLE: deaths},
        )
        for rank in range(1, world_size)
    ]
    service = await start(_of_rank(spec, 0))
    client = Client(Endpoint(service.address, "secret"), trainer_pb2_grpc.TrainerServiceStub)
    buffer = await connect(server.url, spec.run_id)
    try:
        rig = Rig(service, client, buffer, await buffer.acquire_epoch(), folder, followers)
        await rig.call("LoadModel", trainer_pb2.LoadModelRequest(path=str(model), weight_version=1))
        yield rig
    finally:
        await client.close()
        await service.stop(1.0)
        await buffer.close()
        server.stop()
        for follower in followers:
            try:
                await asyncio.wait_for(follower.wait(), timeout=10)
            except TimeoutError:
                follower.kill()


def _of_rank(spec: ServiceSpec, rank: int) -> ServiceSpec:
    place = Path(spec.run_folder, f"machine{rank}") if spec.store else spec.run_folder
    return dataclasses.replace(spec, rank=rank, worker_id=f"trainer-{rank}", run_folder=str(place))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
