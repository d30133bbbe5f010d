"""The run's processes: which there are, how they start together, how a dead one is replaced.

    buffer (embedded Valkey)  ->  everything else needs its address
    executor -> reward        }
    Ray -> trainer gang       }  in parallel
    Ray -> engines            }

A worker's life: starting -> ready -> lost -> (replaced: starting) | stopped. `heal` replaces what is lost;
what that means for weights and batches is the caller's business (controller/loop/recovery.py).
"""

import asyncio
import logging
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crescendo.buffer import EmbeddedServer
from crescendo.common.config.schema import Config
from crescendo.common.errors import CrescendoError, WorkerLostError
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import ServiceSpec
from crescendo.controller.launch.cluster import ActorHandle, Cluster
from crescendo.controller.launch.local import LocalProcess, start_local
from crescendo.proto.v1 import (
    common_pb2,
    reward_pb2,
    reward_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)

log = logging.getLogger(__name__)

REWARD_MODULE = "crescendo.reward_service"
STOP_GRACE_S = 5.0

_STUBS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "trainer": (trainer_pb2_grpc.TrainerServiceStub, trainer_pb2.GetTrainerStatusRequest),
    "rollout": (rollout_pb2_grpc.RolloutServiceStub, rollout_pb2.GetRolloutStatusRequest),
    "reward": (reward_pb2_grpc.RewardServiceStub, reward_pb2.GetRewardStatusRequest),
    "executor": (reward_pb2_grpc.ExecutorServiceStub, reward_pb2.GetExecutorStatusRequest),
}


@dataclass
class Worker:
    """One service process and the client that talks to it (none for a rank that does not speak)."""

    spec: ServiceSpec
    bundle: int = 0
    state: str = "starting"
    process: ActorHandle | LocalProcess | None = None
    client: Client[Any] | None = None
    status: common_pb2.WorkerStatus = field(default_factory=common_pb2.WorkerStatus)

    @property
    def worker_id(self) -> str:
        """Name, stable over replacements: trainer-0, rollout-0, reward-0, executor-0."""
        return self.spec.worker_id

    @property
    def role(self) -> str:
        """trainer | rollout | reward | executor."""
        return self.spec.role

    async def call(self, method: str, request: Any, *, timeout_s: float, attempts: int = 1) -> Any:
        """Calls a method of the service by name; raises a CrescendoError that names the worker."""
        if self.client is None or self.state != "ready":
            raise WorkerLostError(f"{self.worker_id} is {self.state}.")
        try:
            stub_method = getattr(self.client.stub, method)
            return await self.client.call(stub_method, request, timeout_s=timeout_s, attempts=attempts)
        except CrescendoError as error:
            error.message = f"{self.worker_id}.{method}: {error.message}"
            raise

    async def stream(self, method: str, request: Any, *, timeout_s: float) -> AsyncIterator[Any]:
        """Calls a streaming method by name and yields its answers; errors as with `call`."""
        if self.client is None or self.state != "ready":
            raise WorkerLostError(f"{self.worker_id} is {self.state}.")
        try:
            async for answer in self.client.stream(getattr(self.client.stub, method), request, timeout_s=timeout_s):
                yield answer
        except CrescendoError as error:
            error.message = f"{self.worker_id}.{method}: {error.message}"
            raise

    async def refresh(self, timeout_s: float) -> common_pb2.WorkerStatus:
        """Asks the service for its status and keeps it."""
        answer = await self.call("GetStatus", _STUBS[self.role][1](), timeout_s=timeout_s)
        self.status = answer.worker
        return self.status


class Fleet:
    """All processes of a run but the controller itself."""

    def __init__(self, config: Config, folder: RunFolder, *, uses_gpu: bool) -> None:
        self.config = config
        self.folder = folder
        self.uses_gpu = uses_gpu
        self.server: EmbeddedServer | None = None
        self.buffer_url = config.buffer.url
        self.workers: dict[str, Worker] = {}
        self._cluster = Cluster(config.placement, uses_gpu)
        self._scratch = tempfile.TemporaryDirectory(prefix="crescendo-", ignore_cleanup_errors=True)
        self._base: dict[str, Any] = {
            "run_folder": str(folder.root.resolve()),
            "run_id": folder.run_id(),
            "device": "cuda" if uses_gpu else "cpu",
        }

    # Start and end ------------------------------------------------------------------------------------

    async def start_buffer(self) -> str:
        """Starts the embedded server, or takes the external one; returns the URL."""
        if self.config.buffer.name == "embedded":
            self.server = EmbeddedServer.from_config(self.folder.buffer, self.config.buffer)
            self.buffer_url = await asyncio.to_thread(self.server.start)
        return self.buffer_url

    async def start_services(self, on_ready: Callable[[str, float], None]) -> None:
        """Starts the reward service and connects Ray; compute services follow with `start_compute`."""
        deadline_s = self.config.deadlines.start_s
        begun = time.monotonic()
        scoring = asyncio.create_task(self._start_reward())
        try:
            await self._cluster.connect(Path(self._scratch.name), deadline_s)
            on_ready("ray", time.monotonic() - begun)
        finally:
            await scoring
        on_ready("reward", time.monotonic() - begun)

    async def _start_reward(self) -> None:
        rewards = self.config.rewards
        links = [link for chain in (*rewards.chains.values(), rewards.group) for link in chain]
        options = {key: str(value) for key, value in vars(self.config.reward_service).items()}
        options["scorers"] = ",".join(sorted({link.scorer for link in links}))
        executor = await self._launch(self._spec("executor", 0, token="", options=options))
        assert executor.client is not None
        address = executor.client.endpoint.address
        await self._launch(self._spec("reward", 0, address=address, options=options))

    async def start_trainer(self) -> Worker:
        """Starts the gang and returns rank 0, which speaks for it."""
        trainer = self.config.trainer
        size = trainer.tensor_parallel * trainer.data_parallel
        rendezvous = f"127.0.0.1:{_free_port()}"
        options = {"tensor_parallel": str(trainer.tensor_parallel), "data_parallel": str(trainer.data_parallel)}
        specs = [
            self._spec("trainer", rank, rank=rank, world_size=size, rendezvous=rendezvous, options=options,
                       threads=trainer.threads, model_path=str(self.folder.model.resolve()))
            for rank in range(size)
        ]  # fmt: skip
        gang = await asyncio.gather(*(self._launch(spec, bundle=spec.rank) for spec in specs))
        return gang[0]

    async def start_engine(self, index: int) -> Worker:
        """Starts one engine; it holds dummy weights until the first update."""
        rollout = self.config.rollout
        spec = self._spec(
            "rollout", index, threads=rollout.threads, model_path=str(self.folder.model.resolve()),
            options={"dummy": "1", "tensor_parallel": str(rollout.tensor_parallel)},
        )  # fmt: skip
        return await self._launch(spec, bundle=index)

    def _spec(self, role: str, index: int, **fields: Any) -> ServiceSpec:
        fields.setdefault("token", self.folder.read_token())
        buffer_url = self.buffer_url if role in ("trainer", "rollout") else ""
        return ServiceSpec(role=role, worker_id=f"{role}-{index}", buffer_url=buffer_url, **self._base, **fields)

    async def _launch(self, spec: ServiceSpec, bundle: int = 0) -> Worker:
        worker = Worker(spec, bundle)
        self.workers[spec.worker_id] = worker
        deadline_s = self.config.deadlines.start_s
        try:
            if spec.role in ("reward", "executor"):
                worker.process = await start_local(REWARD_MODULE, spec, self.folder.controller.parent, deadline_s)
            else:
                worker.process = await self._cluster.start(spec, bundle=bundle, deadline_s=deadline_s)
        except CrescendoError as error:
            error.message = f"{spec.worker_id} did not start: {error.message}"
            raise
        if worker.process.address:
            stub = _STUBS[spec.role][0]
            worker.client = Client(Endpoint(worker.process.address, spec.token), stub)
        worker.state = "ready"
        log.info("%s is ready at %s (pid %d)", worker.worker_id, worker.process.address, worker.process.pid)
        return worker

    async def stop(self) -> None:
        """Ends every process: compute first, then the reward service, Ray and the buffer."""
        for role in ("rollout", "trainer", "reward", "executor"):
            found = [worker for worker in self.workers.values() if worker.role == role]
            await asyncio.gather(*(self._end(worker) for worker in found))
        await self._cluster.shutdown()
        if self.server is not None:
            await asyncio.to_thread(self.server.stop)
        self._scratch.cleanup()

    async def _end(self, worker: Worker) -> None:
        if worker.client is not None:
            await worker.client.close()
            worker.client = None
        if isinstance(worker.process, ActorHandle):
            if worker.state == "lost":
                self._cluster.kill(worker.process.actor)
            else:
                await self._cluster.stop(worker.process, STOP_GRACE_S)
        elif worker.process is not None:
            await worker.process.stop(STOP_GRACE_S)
        worker.process = None
        worker.state = "stopped"

    # Watching and healing -----------------------------------------------------------------------------

    @property
    def trainer(self) -> Worker:
        """Rank 0 of the gang."""
        return self.workers["trainer-0"]

    @property
    def engines(self) -> list[Worker]:
        """The rollout engines, by index."""
        return [worker for worker in self.workers.values() if worker.role == "rollout"]

    @property
    def reward(self) -> Worker:
        """The reward service."""
        return self.workers["reward-0"]

    async def check(self, timeout_s: float) -> list[Worker]:
        """Asks every service for its status; returns those that are lost, and marks them so."""
        speaking = [worker for worker in self.workers.values() if worker.client is not None]

        async def alive(worker: Worker) -> bool:
            try:
                await worker.refresh(timeout_s)
            except CrescendoError as error:
                log.warning("%s does not answer: %s", worker.worker_id, error)
                return False
            return True

        answers = await asyncio.gather(*(alive(worker) for worker in speaking))
        lost = [worker for worker, answered in zip(speaking, answers, strict=True) if not answered]
        for worker in lost:
            worker.state = "lost"
        return lost

    async def heal(self, lost: list[Worker]) -> None:
        """Replaces lost workers; the loss of a rank replaces the gang, of the executor the reward service too."""
        roles = {worker.role for worker in lost}
        if self.server is not None and not self.server.is_alive():
            self.buffer_url = await asyncio.to_thread(self.server.restart)
        if roles & {"executor", "reward"}:
            await self._replace(["reward", "executor"], self._start_reward)
        if "trainer" in roles:
            await self._replace(["trainer"], self.start_trainer)
        for worker in lost:
            if worker.role == "rollout":
                await self._end(worker)
                await self.start_engine(int(worker.worker_id.rsplit("-", 1)[1]))

    async def _replace(self, roles: list[str], start: Callable[[], Awaitable[Any]]) -> None:
        for role in roles:
            for worker in [worker for worker in self.workers.values() if worker.role == role]:
                worker.state = "lost" if worker.role == "trainer" else worker.state
                await self._end(worker)
        await start()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
