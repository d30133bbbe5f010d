"""The run's processes: which there are, how they start together, how a lost one is replaced.

    buffer (embedded Valkey)  ->  everything else needs its address
    executor -> reward        }
    Ray -> trainer gang       }  in parallel
    Ray -> engines            }

`Supervisor` says which are lost. Every `ensure_...` here ends what is left of the former process first, so that two
of one name never live together. What a replacement means for weights and batches is the caller's business
(controller/loop/recovery.py).
"""

import asyncio
import contextlib
import json
import logging
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from crescendo.buffer import EmbeddedServer
from crescendo.buffer.archive import archive_url
from crescendo.buffer.check import check_server
from crescendo.common.config.layouts import Layout, has_device_counts, layout_of
from crescendo.common.config.schema import Config
from crescendo.common.errors import CrescendoError, WorkerLostError
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import ServiceSpec
from crescendo.common.weights import stale_shm_files
from crescendo.controller.launch.cluster import ActorHandle, Cluster
from crescendo.controller.launch.local import start_local
from crescendo.controller.launch.worker import STUBS, Worker
from crescendo.controller.store import store_fields

log = logging.getLogger(__name__)

LOCAL_MODULES = {
    "reward": "crescendo.reward_service",
    "executor": "crescendo.reward_service",
    "archiver": "crescendo.buffer.archive",
}
"""Roles that are plain subprocesses, and the module that each runs."""
TRAINER_OPTIONS = ("recompute", "distributed_optimizer", "async_checkpoint")  # of config.trainer, beside its layout
STOP_GRACE_S = 5.0
BUFFER_STOP_GRACE_S = 1.0  # of a server that is lost anyway
END_S = 10.0  # for a killed process to be gone
KILL_POLL_S = 0.02
JOIN_PROBE_S = 10.0
JOIN_POLL_S = 0.5


def engine_name(index: int) -> str:
    """The worker id of an engine."""
    return f"rollout-{index}"


class Fleet:
    """All processes of a run but the controller itself."""

    def __init__(self, config: Config, folder: RunFolder, *, uses_gpu: bool, evict: bool = False) -> None:
        """evict: a server that another controller left in the buffer's folder is ended first."""
        self._evict = evict
        self.config = config
        self.folder = folder
        self.uses_gpu = uses_gpu
        self.server: EmbeddedServer | None = None
        self.buffer_url = config.buffer.url
        self.workers: dict[str, Worker] = {}
        self.cluster = Cluster(uses_gpu)
        self.layout = layout_of(config)  # of what starts from now on, and of what runs
        self._incarnations: Counter[str] = Counter()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
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
            if self._evict:
                await asyncio.to_thread(self.server.evict)
            self.buffer_url = await asyncio.to_thread(self.server.start)
        else:
            await check_server(self.buffer_url)
        return self.buffer_url

    async def replace_buffer(self) -> None:
        """Starts the embedded server again on its append-only file; the address stays the same."""
        if self.server is not None:
            await asyncio.to_thread(self.server.stop, BUFFER_STOP_GRACE_S)
            self.buffer_url = await asyncio.to_thread(self.server.start)

    async def ensure_ray(self) -> None:
        """Connects Ray, or connects it again when it was lost: trainer and engines, which lived in it, are lost too."""
        async with self._locks["ray"]:
            if self.cluster.is_connected and not self.cluster.why_lost():
                return
            for worker in (*self.gang, *self.engines):
                worker.lose("Ray was lost")
            await self._end_all("trainer", "rollout")
            await self.cluster.shutdown()
            await self.cluster.connect(Path(self._scratch.name), self.config.deadlines.start_s)

    async def adopt(self, layout: Layout) -> list[str]:
        """Ends the ranks and engines that do not fit a layout; what starts from now on fits. Returns their names."""
        before, self.layout = self.layout, layout
        unfit = [] if layout.same_trainer(before) else self.gang
        if not layout.same_engines(before):
            unfit = unfit + self.engines
        elif layout.num_engines < before.num_engines:
            unfit = unfit + [self.workers[name] for name in self._surplus(before)]
        await asyncio.gather(*map(self._leave, unfit))
        return [worker.worker_id for worker in unfit]

    def _surplus(self, before: Layout) -> list[str]:
        names = map(engine_name, range(self.layout.num_engines, before.num_engines))
        return [name for name in names if name in self.workers]

    async def reserve(self) -> None:
        """Takes the layout's devices; raises EnvironmentProblem or DeadlineError when they are not there in time."""
        deadlines = self.config.deadlines
        limit_s = deadlines.start_s if self.cluster.is_local else deadlines.devices_s
        async with self._locks["ray"]:
            await self.cluster.reserve(self.layout, limit_s, grows=has_device_counts(self.config))

    async def ensure_reward(self) -> None:
        """Starts reward service and executor unless both are ready; the one holds the other's address."""
        async with self._locks["reward"]:
            if not _all_ready(self._of("reward", "executor")):
                await self._end_all("reward", "executor")
                await (self._join_reward() if self.config.reward_service.address else self._start_reward())

    async def ensure_archiver(self) -> Worker | None:
        """Starts the archiver unless it is ready; None when the run keeps no archive."""
        if not self.config.archive.enabled:
            return None
        async with self._locks["archiver"]:
            if not _all_ready(self._of("archiver")):
                await self._end_all("archiver")
                options = {
                    "url": archive_url(self.config, self.folder),
                    "every_s": str(self.config.archive.every_s),
                    "chat_template": "true" if self.config.data.chat_template else "false",
                }
                model = str(self.folder.model.resolve())
                await self._launch(self._spec("archiver", 0, options=options, model_path=model))
            return self.workers["archiver-0"]

    async def ensure_trainer(self) -> Worker:
        """Starts the whole gang unless all its ranks are ready; returns rank 0, which speaks for it."""
        async with self._locks["trainer"]:
            if not _all_ready(self.gang):
                for rank in self.gang:
                    rank.lose("the gang is replaced")
                await self._end_all("trainer")
                for left in stale_shm_files(self.folder.run_id()):
                    left.unlink(missing_ok=True)
                await self._start_trainer()
            return self.trainer

    async def ensure_engine(self, index: int) -> Worker:
        """Starts an engine unless it is ready; a new one holds dummy weights until its first update."""
        name = engine_name(index)
        async with self._locks[name]:
            found = self.workers.get(name)
            if found is not None and found.is_ready:
                return found
            if found is not None:
                await self._end(found)
            if self.cluster.why_lost():
                raise WorkerLostError(f"{name} has no Ray to live in: {self.cluster.why_lost()}.")
            return await self._start_engine(index)

    async def end_engine(self, engine: Worker) -> None:
        """Ends an engine that nobody wants any more."""
        async with self._locks[engine.worker_id]:
            await self._end(engine)
            self.workers.pop(engine.worker_id, None)

    async def _leave(self, worker: Worker) -> None:
        """Ends a worker that does not fit the layout; there is none of its name afterwards."""
        if worker.is_ready:
            worker.state = "leaving"  # its silence is nobody's loss
        await self._end(worker)
        self.workers.pop(worker.worker_id, None)

    async def _join_reward(self) -> None:
        """Waits until the reward service that serves many runs answers, and takes it as this run's."""
        address, deadline_s = self.config.reward_service.address, self.config.deadlines.start_s
        worker = Worker(self._spec("reward", 0, address=address))
        self.workers[worker.worker_id] = worker
        worker.client = Client(Endpoint(address), STUBS["reward"][0])
        worker.state = "ready"
        give_up = time.monotonic() + deadline_s
        while True:
            try:
                await worker.refresh(min(JOIN_PROBE_S, deadline_s))
            except CrescendoError as error:
                if not error.retryable or time.monotonic() > give_up:
                    worker.lose("it does not answer")
                    error.message = f"reward_service.address {address} does not answer: {error.message}"
                    raise
                await asyncio.sleep(JOIN_POLL_S)
            else:
                log.info("the reward service at %s answers", address)
                return

    async def _start_reward(self) -> None:
        rewards = self.config.rewards
        links = [link for chain in (*rewards.chains.values(), rewards.group) for link in chain]
        settings = dict(vars(self.config.reward_service))
        settings |= {f"sandbox_{key}": value for key, value in vars(settings.pop("sandbox")).items()}
        options = {key: str(value) for key, value in settings.items()}
        options["scorers"] = ",".join(sorted({link.scorer for link in links}))
        executor = await self._launch(self._spec("executor", 0, token="", options=options))
        assert executor.client is not None
        address = executor.client.endpoint.address
        # For the reward process alone: the executor has no business with addresses and keys.
        models = json.dumps({name: vars(model) for name, model in rewards.models.items()})
        await self._launch(self._spec("reward", 0, address=address, options={**options, "reward_models": models}))

    async def _start_trainer(self) -> None:
        trainer, layout = self.config.trainer, self.layout
        size = layout.num_ranks
        options = layout.trainer_options() | {name: str(getattr(trainer, name)) for name in TRAINER_OPTIONS}
        specs = [
            self._spec("trainer", rank, rank=rank, world_size=size, options=options,
                       threads=trainer.threads, model_path=str(self.folder.model.resolve()))
            for rank in range(size)
        ]  # fmt: skip
        actors: list[Any] = [None] * size
        if size > 1:  # they meet where rank 0 is
            actors[0] = await self.cluster.place(specs[0], bundle=0)
            rendezvous = await self.cluster.rendezvous(actors[0], self.config.deadlines.start_s)
            specs = [replace(spec, rendezvous=rendezvous) for spec in specs]
        await asyncio.gather(
            *(self._launch(spec, bundle=spec.rank, actor=actor) for spec, actor in zip(specs, actors, strict=True))
        )

    async def _start_engine(self, index: int) -> Worker:
        rollout, parallel = self.config.rollout, self.layout.engine_tensor_parallel
        first = self.layout.first_device("rollout", index)
        spec = self._spec(
            "rollout", index, threads=rollout.threads, model_path=str(self.folder.model.resolve()),
            options={"dummy": "1", "tensor_parallel": str(parallel), **self.cluster.spanned(first, parallel)},
        )  # fmt: skip
        return await self._launch(spec, bundle=first)

    def _spec(self, role: str, index: int, **fields: Any) -> ServiceSpec:
        fields.setdefault("token", self.folder.read_token())
        buffer_url = self.buffer_url if role in ("trainer", "rollout", "archiver") else ""
        fields |= store_fields(role, self.config, self.folder)
        worker_id = f"{role}-{index}"
        incarnation = self._incarnations[worker_id]
        self._incarnations[worker_id] += 1
        return ServiceSpec(
            role=role, worker_id=worker_id, incarnation=incarnation, buffer_url=buffer_url, **self._base, **fields
        )

    async def _launch(self, spec: ServiceSpec, bundle: int = 0, actor: Any = None) -> Worker:
        """actor: placed already, for a service in Ray."""
        worker = Worker(spec, bundle)
        self.workers[spec.worker_id] = worker
        deadline_s = self.config.deadlines.start_s
        try:
            if module := LOCAL_MODULES.get(spec.role):
                worker.process = await start_local(module, spec, self.folder.controller.parent, deadline_s)
            else:
                placed = {"actor": actor} if actor is not None else {}
                worker.process = await self.cluster.start(spec, bundle=bundle, deadline_s=deadline_s, **placed)
        except CrescendoError as error:
            error.message = f"{spec.worker_id} did not start: {error.message}"
            raise
        if worker.process.address:
            stub = STUBS[spec.role][0]
            is_open = spec.role == "executor"
            worker.client = Client(Endpoint(worker.process.address, spec.token, is_open), stub)
        worker.state = "ready"
        log.info("%s is ready at %s (pid %d)", worker.worker_id, worker.process.address, worker.process.pid)
        return worker

    async def stop(self) -> None:
        """Ends every process: compute first, then the reward service, Ray and the buffer."""
        await self._end_all("rollout", "trainer", "reward", "executor", "archiver")
        await self.cluster.shutdown()
        if self.server is not None:
            await asyncio.to_thread(self.server.stop)
        self._scratch.cleanup()

    async def _end(self, worker: Worker) -> None:
        """Ends a worker: politely, or at once when it is lost; returns when its process is gone, where it can tell."""
        lost = worker.state == "lost"
        if worker.client is not None:
            await worker.client.close()
            worker.client = None
        if lost:
            await asyncio.to_thread(self.kill, worker)
        elif isinstance(worker.process, ActorHandle):
            await self.cluster.stop(worker.process, STOP_GRACE_S)
            await asyncio.to_thread(self.kill, worker)
        elif worker.process is not None:
            await worker.process.stop(STOP_GRACE_S)
        worker.process = None
        worker.state = "stopped"

    def kill(self, worker: Worker) -> None:
        """Ends a worker's process at once, a stopped one too, and waits for its end if it is on this machine."""
        process = worker.process
        if process is None:
            return
        if isinstance(process, ActorHandle):
            self.cluster.kill(process.actor)
        if not self.is_local(worker):
            return
        try:
            here = psutil.Process(process.pid)
            doomed = [here, *here.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for one in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        deadline = time.monotonic() + END_S
        while not all(map(_has_ended, doomed)):
            if time.monotonic() > deadline:
                log.error("%s (pid %d) does not end though it was killed", worker.worker_id, process.pid)
                return
            time.sleep(KILL_POLL_S)

    # Who is there ------------------------------------------------------------------------------------

    @property
    def trainer(self) -> Worker:
        """Rank 0 of the gang."""
        return self.workers["trainer-0"]

    @property
    def gang(self) -> list[Worker]:
        """All ranks of the trainer."""
        return self._of("trainer")

    @property
    def engines(self) -> list[Worker]:
        """The rollout engines, lost ones included, by index."""
        return self._of("rollout")

    @property
    def reward(self) -> Worker:
        """The reward service."""
        return self.workers["reward-0"]

    def _of(self, *roles: str) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.role in roles]

    def is_local(self, worker: Worker) -> bool:
        """Whether the worker's process id means something on this machine."""
        return not isinstance(worker.process, ActorHandle) or self.cluster.is_local

    def is_gone(self, worker: Worker) -> bool:
        """Whether the worker's process has certainly ended."""
        if worker.process is None or not self.is_local(worker):
            return False
        try:
            return _has_ended(psutil.Process(worker.process.pid))
        except psutil.NoSuchProcess:
            return True

    async def answers(self, worker: Worker, timeout_s: float) -> bool:
        """Whether a process that serves no gRPC runs, as far as it can be asked."""
        if isinstance(worker.process, ActorHandle):
            return await self.cluster.answers(worker.process, timeout_s)
        return not self.is_gone(worker)

    async def _end_all(self, *roles: str) -> None:
        for role in roles:
            await asyncio.gather(*(self._end(worker) for worker in self._of(role)))


def _all_ready(workers: list[Worker]) -> bool:
    return bool(workers) and all(worker.is_ready for worker in workers)


def _has_ended(process: psutil.Process) -> bool:
    """Whether it is gone; a zombie is, its parent only has not looked yet."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
