"""TrainerService: a gang of Megatron ranks behind gRPC.

The controller starts each rank by entry point (`crescendo.services`), in a Ray actor or a plain process. `start`
brings up torch.distributed in the rank's compute thread, where everything heavy runs from then on; the event
loop stays free, so that GetStatus and health answer during training. Rank 0 serves; the others follow it
(gang.py). When a rank fails the gang breaks: rank 0 reports NOT_SERVING and refuses, and the controller starts
the whole gang again. `stop` ends the server, then the followers, then the groups.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from crescendo.common.config.load import load_resolved
from crescendo.common.errors import CrescendoError, WorkerStartError
from crescendo.common.fence import FenceGuard
from crescendo.common.rpc import Server, guarded, guarded_stream, serve
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import RunningService, ServiceSpec
from crescendo.proto.v1 import common_pb2, trainer_pb2, trainer_pb2_grpc
from crescendo.trainer.guard import Once, Save
from crescendo.trainer.settings import TrainerSettings

if TYPE_CHECKING:
    from crescendo.trainer.worker import TrainerWorker

log = logging.getLogger(__name__)

SERVICE_NAME = "crescendo.v1.TrainerService"
STOP_TIMEOUT_S = 15.0

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")
M = TypeVar("M", bound=Message)


class _ComputeThread:
    """The one thread in which torch and Megatron run."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self.busy = False
        self._begun_at = 0.0

    def progress_age_s(self, progressed_at: float) -> float:
        """Seconds since work began or, later, progressed (monotonic time); 0 while there is none to do."""
        return time.monotonic() - max(progressed_at, self._begun_at) if self.busy else 0.0

    async def run(self, work: Callable[[], T]) -> T:
        """The work's result; works wait for each other."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._marked, work)

    def _marked(self, work: Callable[[], T]) -> T:
        self._begun_at, self.busy = time.monotonic(), True
        try:
            return work()
        finally:
            self.busy = False

    def end(self) -> None:
        """Lets the thread end without waiting for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """The calls of trainer.proto, on rank 0."""

    def __init__(self, spec: ServiceSpec, worker: "TrainerWorker", compute: _ComputeThread) -> None:
        self._spec = spec
        self._worker = worker
        self._compute = compute
        self._fence = FenceGuard()
        self._once = Once()
        self._saves: dict[str, Save] = {}
        self._started = time.monotonic()
        self._doing = ""
        self.server: Server | None = None

    @guarded
    async def GetStatus(
        self, request: trainer_pb2.GetTrainerStatusRequest, context: Context
    ) -> trainer_pb2.GetTrainerStatusResponse:
        """What the gang does; answers while it trains."""
        worker = self._worker
        status = common_pb2.WorkerStatus(
            worker_id=self._spec.worker_id,
            role=self._spec.role,
            state="broken" if worker.gang.broken else self._doing or "idle",
            weight_version=worker.weight_version,
            admitted=True,
            uptime_seconds=time.monotonic() - self._started,
            resident_bytes=worker.resident_bytes(),
            pid=os.getpid(),
            progress_age_seconds=self._compute.progress_age_s(worker.progressed_at),
            fence=self._fence.highest,
            device=worker.device.report(),
        )
        return trainer_pb2.GetTrainerStatusResponse(
            worker=status, world_size=worker.at.world_size, num_parameters=worker.num_parameters
        )

    async def _lead(self, method: str, request: Message) -> Message:
        """Runs a method on all ranks, in the compute thread."""
        self._doing = method
        try:
            return await self._compute.run(lambda: self._worker.gang.lead(method, request))
        finally:
            self._doing = ""
            await self._report_health()

    async def _change(self, method: str, request: Any, answer_type: type[M]) -> M:
        """A call that changes state: fenced, in order, once."""
        self._fence.check(request.fence)
        key = getattr(request, "idempotency_key", "")

        async def change() -> Message:
            self._fence.check(request.fence)  # a newer one may have come while this one waited
            return await self._lead(method, request)

        return cast(M, await self._once.run(f"{method}:{key}" if key else "", change))

    async def _report_health(self) -> None:
        if self._worker.gang.broken and self.server is not None:
            for name in ("", SERVICE_NAME):
                await self.server.health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)

    @guarded
    async def LoadModel(self, request: trainer_pb2.LoadModelRequest, context: Context) -> trainer_pb2.LoadModelResponse:
        """Builds a model and loads its weights."""
        return await self._change("LoadModel", request, trainer_pb2.LoadModelResponse)

    @guarded_stream
    async def TrainSft(
        self, request: trainer_pb2.TrainSftRequest, context: Context
    ) -> AsyncIterator[trainer_pb2.TrainSftResponse]:
        """A chunk of supervised steps; a repeated chunk answers with the reports of the first time."""
        self._fence.check(request.fence)
        loop = asyncio.get_running_loop()
        reports: asyncio.Queue[trainer_pb2.TrainSftResponse | None] = asyncio.Queue()

        async def change() -> list[trainer_pb2.TrainSftResponse]:
            self._fence.check(request.fence)
            done: list[trainer_pb2.TrainSftResponse] = []

            def emit(report: trainer_pb2.TrainSftResponse) -> None:
                done.append(report)
                loop.call_soon_threadsafe(reports.put_nowait, report)

            self._worker.emit = emit
            await self._lead("TrainSft", request)
            return done

        key = f"TrainSft:{request.idempotency_key}" if request.idempotency_key else ""
        task = asyncio.create_task(self._once.run(key, change))
        task.add_done_callback(lambda _: reports.put_nowait(None))
        sent = 0
        while (report := await reports.get()) is not None:
            sent += 1
            yield report
        for report in (await task)[sent:]:
            yield report

    @guarded
    async def Train(self, request: trainer_pb2.TrainRequest, context: Context) -> trainer_pb2.TrainResponse:
        """One recorded batch."""
        return await self._change("Train", request, trainer_pb2.TrainResponse)

    @guarded
    async def ScoreSequences(
        self, request: trainer_pb2.ScoreSequencesRequest, context: Context
    ) -> trainer_pb2.ScoreSequencesResponse:
        """Log-probabilities of sequences."""
        return cast(trainer_pb2.ScoreSequencesResponse, await self._lead("ScoreSequences", request))

    @guarded
    async def Publish(self, request: trainer_pb2.PublishRequest, context: Context) -> trainer_pb2.PublishResponse:
        """Weights into a channel."""
        return await self._change("Publish", request, trainer_pb2.PublishResponse)

    @guarded
    async def Retire(self, request: trainer_pb2.RetireRequest, context: Context) -> trainer_pb2.RetireResponse:
        """Frees older versions."""
        return await self._change("Retire", request, trainer_pb2.RetireResponse)

    @guarded
    async def SaveCheckpoint(
        self, request: trainer_pb2.SaveCheckpointRequest, context: Context
    ) -> trainer_pb2.SaveCheckpointResponse:
        """Writes a checkpoint. Written asynchronously, other calls run meanwhile, and this one answers at its end."""
        self._fence.check(request.fence)
        save = self._saves.get(request.idempotency_key) if request.idempotency_key else None
        if save is None or save.told:
            save = Save()
            save.task = asyncio.create_task(self._save(request, save.begun))
            self._saves = {request.idempotency_key: save}
        try:
            if request.only_begin:
                await save.until_begun()
                return trainer_pb2.SaveCheckpointResponse()
            return await asyncio.shield(save.task)
        except CrescendoError:
            save.told = True
            raise

    async def _save(
        self, request: trainer_pb2.SaveCheckpointRequest, begun: asyncio.Event
    ) -> trainer_pb2.SaveCheckpointResponse:
        answer = await self._change("SaveCheckpoint", request, trainer_pb2.SaveCheckpointResponse)
        begun.set()
        if not self._worker.settings.async_checkpoint:
            return answer
        await asyncio.to_thread(self._worker.writer.wait, request.path)
        return cast(trainer_pb2.SaveCheckpointResponse, await self._lead("FinishCheckpoint", request))

    @guarded
    async def LoadCheckpoint(
        self, request: trainer_pb2.LoadCheckpointRequest, context: Context
    ) -> trainer_pb2.LoadCheckpointResponse:
        """Verifies and restores a checkpoint."""
        return await self._change("LoadCheckpoint", request, trainer_pb2.LoadCheckpointResponse)

    @guarded
    async def ExportModel(
        self, request: trainer_pb2.ExportModelRequest, context: Context
    ) -> trainer_pb2.ExportModelResponse:
        """Writes a Hugging Face folder."""
        return await self._change("ExportModel", request, trainer_pb2.ExportModelResponse)

    @guarded
    async def ReleaseDevice(
        self, request: trainer_pb2.TrainerReleaseDeviceRequest, context: Context
    ) -> trainer_pb2.TrainerReleaseDeviceResponse:
        """Lets go of the device."""
        return await self._change("ReleaseDevice", request, trainer_pb2.TrainerReleaseDeviceResponse)

    @guarded
    async def AcquireDevice(
        self, request: trainer_pb2.TrainerAcquireDeviceRequest, context: Context
    ) -> trainer_pb2.TrainerAcquireDeviceResponse:
        """Takes the device."""
        return await self._change("AcquireDevice", request, trainer_pb2.TrainerAcquireDeviceResponse)

    async def beat(self, every_s: float) -> None:
        """Keeps idle followers waiting; runs until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            if not self._compute.busy:
                await self._compute.run(self._worker.gang.beat)
                await self._report_health()


class Speaker:
    """Rank 0, serving."""

    def __init__(self, server: Server, servicer: TrainerServicer, worker: "TrainerWorker", compute: _ComputeThread):
        self._server = server
        self._worker = worker
        self._compute = compute
        self._beats: asyncio.Task[None] | None = None
        if worker.at.world_size > 1:
            from crescendo.trainer.gang import BEAT_S

            self._beats = asyncio.create_task(servicer.beat(BEAT_S))

    @property
    def address(self) -> str:
        """host:port of the service."""
        return self._server.address

    async def stop(self, grace_s: float) -> None:
        """Drains, then ends the gang; work that does not end within grace_s is abandoned."""
        if self._beats is not None:
            self._beats.cancel()
        await self._server.stop(grace_s)
        await _end(self._worker, self._compute, max(grace_s, STOP_TIMEOUT_S))


class Follower:
    """Another rank, doing what rank 0 says. It has no address."""

    def __init__(self, worker: "TrainerWorker", compute: _ComputeThread) -> None:
        self._worker = worker
        self._compute = compute
        self._life = asyncio.create_task(compute.run(worker.gang.follow))

    @property
    def address(self) -> str:
        """Empty: it does not speak."""
        return ""

    async def wait(self) -> None:
        """Returns when rank 0 said stop or the gang broke."""
        await asyncio.shield(self._life)

    async def stop(self, grace_s: float) -> None:
        """Waits for rank 0's word for grace_s, then ends."""
        try:
            await asyncio.wait_for(asyncio.shield(self._life), timeout=max(grace_s, STOP_TIMEOUT_S))
        except TimeoutError:
            log.warning("rank %d ends without rank 0's word", self._worker.at.rank)
        await _end(self._worker, self._compute, STOP_TIMEOUT_S)


async def _end(worker: "TrainerWorker", compute: _ComputeThread, limit_s: float) -> None:
    from crescendo.trainer.megatron import parallel

    def end() -> None:
        worker.gang.stop()
        worker.close()
        parallel.stop()

    try:
        await asyncio.wait_for(compute.run(end), timeout=limit_s)
    except TimeoutError:
        log.warning("the compute thread is still busy after %.0f s and is left behind", limit_s)
    compute.end()


def _deterministic(spec: ServiceSpec) -> bool:
    config = RunFolder(Path(spec.run_folder)).config
    return config.is_file() and load_resolved(config).run.deterministic


def _build(spec: ServiceSpec) -> "TrainerWorker":
    """Imports the heavy parts and joins the gang; runs in the compute thread."""
    # Read when OpenMP is loaded: threads that spin while they wait starve the engine on the same cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    import torch

    from crescendo.trainer.megatron import parallel
    from crescendo.trainer.worker import TrainerWorker

    settings = TrainerSettings.from_options(spec.options)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    if _deterministic(spec):
        torch.use_deterministic_algorithms(True)
    at = parallel.start(
        rank=spec.rank,
        world_size=spec.world_size,
        rendezvous=spec.rendezvous,
        device=spec.device,
        timeout_s=settings.start_timeout_s,
        tensor_parallel=settings.tensor_parallel,
        pipeline_parallel=settings.pipeline_parallel,
        context_parallel=settings.context_parallel,
        expert_parallel=settings.expert_parallel,
    )
    return TrainerWorker(spec, settings, at)


async def start(spec: ServiceSpec) -> RunningService:
    """Starts one rank of the gang; returns when all ranks have met and, on rank 0, the service listens.

    Raises WorkerStartError when that fails, ConfigError for a layout that does not fit.
    """
    compute = _ComputeThread()
    try:
        worker = await compute.run(lambda: _build(spec))
    except CrescendoError:
        compute.end()
        raise
    except Exception as error:
        compute.end()
        log.exception("trainer rank %d could not start", spec.rank)
        raise WorkerStartError(f"trainer rank {spec.rank} could not start: {type(error).__name__}: {error}") from error
    if spec.rank != 0:
        return Follower(worker, compute)
    servicer = TrainerServicer(spec, worker, compute)
    servicer.server = await serve(
        lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server),
        [SERVICE_NAME],
        token=spec.token,
    )
    return Speaker(servicer.server, servicer, worker, compute)
