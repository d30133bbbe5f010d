"""Stand-ins for what is heavy in a run: a trainer whose weights say what they were trained on, and a reward service.

The controller, its loop, the buffer and the rollout service (with the scripted engine) are the real ones. The light
trainer's weights are a list of what trained them, so a test can ask the weights themselves which trajectories
they have seen. Everything serves gRPC inside the controller's process: its death is everybody's.
"""

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crescendo.buffer import connect
from crescendo.common import failpoints
from crescendo.common.errors import CheckpointError, RequestError
from crescendo.common.fence import FenceGuard
from crescendo.common.object_store import ObjectStore
from crescendo.common.rpc import Server, guarded, guarded_stream, serve
from crescendo.common.service import ServiceSpec
from crescendo.common.weights import manifest_digest, shm_path, tensor_digest
from crescendo.proto.v1 import common_pb2, reward_pb2, reward_pb2_grpc, trainer_pb2, trainer_pb2_grpc

WEIGHT_BYTES = 64
SAVE_BESIDE_S = 1.0  # longer than the rollout beside which it is written
CHECKPOINT_FILE = "weights.json"


@dataclass
class Weights:
    """seen: one line a training step; parent versions are left out, because replayed steps get new ones."""

    version: int = 0
    seen: list[str] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """64 bytes that depend on everything seen."""
        return hashlib.sha512("\n".join(self.seen).encode()).digest()


class LightTrainer(trainer_pb2_grpc.TrainerServiceServicer):
    """TrainerService without a model."""

    def __init__(self, spec: ServiceSpec) -> None:
        self._spec = spec
        self._fence = FenceGuard()
        self._weights = Weights()
        self._saves: dict[str, asyncio.Task[trainer_pb2.CheckpointFile]] = {}

    @guarded
    async def GetStatus(self, request: Any, context: Any) -> trainer_pb2.GetTrainerStatusResponse:
        worker = common_pb2.WorkerStatus(
            worker_id=self._spec.worker_id, role="trainer", state="idle", pid=os.getpid(), admitted=True
        )
        return trainer_pb2.GetTrainerStatusResponse(worker=worker, world_size=1)

    @guarded
    async def LoadModel(self, request: Any, context: Any) -> trainer_pb2.LoadModelResponse:
        self._fence.check(request.fence)
        self._weights = Weights(request.weight_version)
        return trainer_pb2.LoadModelResponse()

    @guarded_stream
    async def TrainSft(self, request: Any, context: Any) -> AsyncIterator[trainer_pb2.TrainSftResponse]:
        self._fence.check(request.fence)
        steps = len(request.examples) // request.batch_size
        self._weights.seen.append(f"sft {request.first_step} {steps}")
        self._weights.version = request.weight_version
        for number in range(steps):
            yield trainer_pb2.TrainSftResponse(step=request.first_step + number, num_tokens=1, seconds=0.001)

    @guarded
    async def Train(self, request: Any, context: Any) -> trainer_pb2.TrainResponse:
        self._fence.check(request.fence)
        batch = request.batch
        if batch.parent_version != self._weights.version:
            raise RequestError(f"parent is {batch.parent_version}; the trainer holds {self._weights.version}.")
        buffer = await connect(self._spec.buffer_url, self._spec.run_id)
        names = [name for group in batch.groups for name in group.trajectory_ids]
        found = await buffer.load_trajectories(names)
        await buffer.close()
        tokens = hashlib.sha256(b"".join(one.token_ids.tobytes() for one in found)).hexdigest()[:16]
        self._weights.seen.append(f"rl {batch.branch} {batch.iteration} {tokens} {' '.join(names)}")
        self._weights.version = batch.new_version
        failpoints.reach("trainer.stepped")
        return trainer_pb2.TrainResponse(
            weight_version=batch.new_version, num_trajectories=len(names), num_tokens=sum(t.num_tokens for t in found)
        )

    @guarded
    async def Publish(self, request: Any, context: Any) -> trainer_pb2.PublishResponse:
        self._fence.check(request.fence)
        path, content = shm_path(self._spec.run_id, request.version), self._weights.to_bytes()
        path.write_bytes(content)
        failpoints.reach("trainer.published")
        tensor = common_pb2.TensorSpec(
            name="w", dtype="float32", shape=[WEIGHT_BYTES // 4], num_bytes=WEIGHT_BYTES, digest=tensor_digest(content)
        )
        canaries = [
            common_pb2.Canary(token_ids=one.token_ids, log_probs=[-1.0] * (len(one.token_ids) - 1))
            for one in request.canaries
        ]
        manifest = common_pb2.WeightManifest(
            version=request.version, parent=request.parent, branch=request.branch, iteration=request.iteration,
            channel="shm", shards=[common_pb2.WeightShard(address=str(path), num_bytes=WEIGHT_BYTES)],
            tensors=[tensor], digest=manifest_digest([tensor], [tensor.digest]), canaries=canaries,
        )  # fmt: skip
        return trainer_pb2.PublishResponse(manifest=manifest)

    @guarded
    async def Retire(self, request: Any, context: Any) -> trainer_pb2.RetireResponse:
        for version in range(max(0, request.below_version - 8), request.below_version):
            shm_path(self._spec.run_id, version).unlink(missing_ok=True)
        return trainer_pb2.RetireResponse()

    @guarded
    async def SaveCheckpoint(self, request: Any, context: Any) -> trainer_pb2.SaveCheckpointResponse:
        self._fence.check(request.fence)
        if request.idempotency_key not in self._saves:
            delay_s = SAVE_BESIDE_S if request.only_begin else 0.0
            saving = asyncio.create_task(self._save_later(Path(request.path), list(self._weights.seen), delay_s))
            self._saves = {request.idempotency_key: saving}
        if request.only_begin:
            return trainer_pb2.SaveCheckpointResponse()
        return trainer_pb2.SaveCheckpointResponse(files=[await self._saves[request.idempotency_key]])

    async def _save_later(self, folder: Path, seen: list[str], delay_s: float) -> trainer_pb2.CheckpointFile:
        """With a store nothing stays on the machine."""
        await asyncio.sleep(delay_s)
        file = _save(folder, seen)
        if self._spec.store:
            ObjectStore(self._spec.store).put(folder / file.path, f"checkpoints/{folder.name}/{file.path}")
            shutil.rmtree(folder)
        return file

    @guarded
    async def LoadCheckpoint(self, request: Any, context: Any) -> trainer_pb2.LoadCheckpointResponse:
        self._fence.check(request.fence)
        folder, file = Path(request.path), request.files[0]
        if self._spec.store:
            stored = f"checkpoints/{folder.name}/{file.path}"
            ObjectStore(self._spec.store).get(stored, folder / file.path, file.num_bytes, file.digest)
        self._weights = Weights(request.weight_version, _load(folder, file))
        return trainer_pb2.LoadCheckpointResponse(weight_version=request.weight_version)

    @guarded
    async def ExportModel(self, request: Any, context: Any) -> trainer_pb2.ExportModelResponse:
        _save(Path(request.path), self._weights.seen)
        return trainer_pb2.ExportModelResponse()

    @guarded
    async def ReleaseDevice(self, request: Any, context: Any) -> trainer_pb2.TrainerReleaseDeviceResponse:
        self._fence.check(request.fence)
        return trainer_pb2.TrainerReleaseDeviceResponse()

    @guarded
    async def AcquireDevice(self, request: Any, context: Any) -> trainer_pb2.TrainerAcquireDeviceResponse:
        self._fence.check(request.fence)
        return trainer_pb2.TrainerAcquireDeviceResponse()


def _save(folder: Path, seen: list[str]) -> trainer_pb2.CheckpointFile:
    folder.mkdir(exist_ok=True)
    failpoints.reach("trainer.saving")
    content = json.dumps(seen).encode()
    (folder / CHECKPOINT_FILE).write_bytes(content)
    return trainer_pb2.CheckpointFile(path=CHECKPOINT_FILE, num_bytes=len(content), digest=tensor_digest(content))


def _load(folder: Path, file: trainer_pb2.CheckpointFile) -> list[str]:
    content = (folder / CHECKPOINT_FILE).read_bytes()
    if tensor_digest(content) != file.digest:
        raise CheckpointError(f"{folder} is damaged.")
    seen: list[str] = json.loads(content)
    return seen


class LightReward(reward_pb2_grpc.RewardServiceServicer):
    """RewardService that finds half of the responses right."""

    @guarded
    async def GetStatus(self, request: Any, context: Any) -> reward_pb2.GetRewardStatusResponse:
        return reward_pb2.GetRewardStatusResponse(
            worker=common_pb2.WorkerStatus(worker_id="reward-0", role="reward", state="ready", pid=os.getpid())
        )

    @guarded
    async def Score(self, request: Any, context: Any) -> reward_pb2.ScoreResponse:
        return reward_pb2.ScoreResponse(results=[_scored(item) for item in request.items])

    @guarded
    async def ScoreGroups(self, request: Any, context: Any) -> reward_pb2.ScoreGroupsResponse:
        return reward_pb2.ScoreGroupsResponse()


class LightExecutor(reward_pb2_grpc.ExecutorServiceServicer):
    """ExecutorService that has nothing to do."""

    @guarded
    async def GetStatus(self, request: Any, context: Any) -> reward_pb2.GetExecutorStatusResponse:
        return reward_pb2.GetExecutorStatusResponse(
            worker=common_pb2.WorkerStatus(worker_id="executor-0", role="executor", state="ready", pid=os.getpid())
        )


def _scored(item: reward_pb2.ScoreItem) -> reward_pb2.ScoreResult:
    right = hashlib.md5(item.item_id.encode()).digest()[0] % 2 == 0
    verdict = common_pb2.VERDICT_CORRECT if right else common_pb2.VERDICT_WRONG
    component = common_pb2.RewardComponent(name="light", raw=float(right), weight=1.0, verdict=verdict)
    return reward_pb2.ScoreResult(item_id=item.item_id, components=[component])


@dataclass
class LightService:
    """A started stand-in; RunningService."""

    server: Server

    @property
    def address(self) -> str:
        """host:port of the gRPC server."""
        return self.server.address

    async def stop(self, grace_s: float) -> None:
        """Ends it."""
        await self.server.stop(grace_s)


async def start_trainer(spec: ServiceSpec) -> LightService:
    """The stand-in for entry point `trainer`."""
    trainer = LightTrainer(spec)
    return await _serve(
        lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(trainer, server),
        "crescendo.v1.TrainerService",
        spec.token,
    )


async def start_reward(spec: ServiceSpec) -> LightService:
    """The stand-in for entry point `reward`."""
    return await _serve(
        lambda server: reward_pb2_grpc.add_RewardServiceServicer_to_server(LightReward(), server),
        "crescendo.v1.RewardService",
        spec.token,
    )


async def start_executor(spec: ServiceSpec) -> LightService:
    """The stand-in for entry point `executor`."""
    return await _serve(
        lambda server: reward_pb2_grpc.add_ExecutorServiceServicer_to_server(LightExecutor(), server),
        "crescendo.v1.ExecutorService",
        spec.token,
    )


async def _serve(register: Callable[[Any], None], name: str, token: str) -> LightService:
    return LightService(await serve(register, [name], token=token))
