"""RolloutService: one inference engine behind gRPC.

The controller starts it by entry point (`crescendo.services`), in a Ray actor or a plain process: `start`
builds the engine on its thread, then serves. In a rollout phase the engine claims trajectories from the buffer
by itself (phase.py); Generate serves what is outside the ledger (generate.py). `stop` parks what runs, ends
the server, then the engine.
"""

import asyncio
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import psutil
from grpc_health.v1 import health_pb2

from crescendo.buffer.protocol import ExperienceBuffer
from crescendo.common.config.load import load_resolved
from crescendo.common.config.schema import Config
from crescendo.common.errors import CrescendoError, RequestError
from crescendo.common.fence import FenceGuard
from crescendo.common.rpc import Server, guarded, guarded_stream, serve
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import RunningService, ServiceSpec
from crescendo.proto.v1 import common_pb2, rollout_pb2, rollout_pb2_grpc
from crescendo.rollout.device import DeviceLease
from crescendo.rollout.engine import EngineSettings, EngineThread, make_engine
from crescendo.rollout.fetch import NodeCopy
from crescendo.rollout.generate import GenerateCall
from crescendo.rollout.ordered import OrderedPhase
from crescendo.rollout.phase import RolloutPhase
from crescendo.rollout.tokenizer import load_decode
from crescendo.rollout.weights import WeightReceiver

log = logging.getLogger(__name__)

SERVICE_NAME = "crescendo.v1.RolloutService"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class RolloutServicer(rollout_pb2_grpc.RolloutServiceServicer):
    """The calls of rollout.proto. One lock orders the calls that change state."""

    def __init__(
        self, spec: ServiceSpec, config: Config, engine: EngineThread, buffer: ExperienceBuffer | None
    ) -> None:
        """buffer: None serves Generate and weights only."""
        self._spec = spec
        self._deadlines = config.deadlines
        self._deterministic = config.run.deterministic
        self._engine = engine
        self._buffer = buffer
        self._decode = load_decode(Path(spec.model_path))
        self._weights = WeightReceiver(engine, NodeCopy(spec.run_id, spec.token))
        self._device = DeviceLease(engine, spec.device, config.deadlines.sync_s)
        self._fence = FenceGuard()
        self._phase: RolloutPhase | None = None
        self._generates: set[GenerateCall] = set()
        self._call_ids = itertools.count()
        self._attested = ("", common_pb2.Attestation())
        self._begun_key = ""
        self._progress = rollout_pb2.RolloutProgress()
        self._lock = asyncio.Lock()
        self._started_s = time.monotonic()
        self._server: Server | None = None
        self._health_tasks: set[asyncio.Task[None]] = set()

    # Status ------------------------------------------------------------------------------------------

    @guarded
    async def GetStatus(
        self, request: rollout_pb2.GetRolloutStatusRequest, context: Context
    ) -> rollout_pb2.GetRolloutStatusResponse:
        """What the engine does; answers while everything else is busy."""
        worker = common_pb2.WorkerStatus(
            worker_id=self._spec.worker_id,
            role=self._spec.role,
            state=self._state(),
            weight_version=self._weights.loaded_version,
            admitted=self._weights.admitted,
            uptime_seconds=time.monotonic() - self._started_s,
            resident_bytes=psutil.Process().memory_info().rss,
            pid=os.getpid(),
            progress_age_seconds=self._engine.progress_age_s,
            fence=self._fence.highest,
            device=self._device.report(),
        )
        return rollout_pb2.GetRolloutStatusResponse(worker=worker, progress=self._current_progress())

    # The rollout phase -------------------------------------------------------------------------------

    @guarded
    async def Begin(self, request: rollout_pb2.BeginRequest, context: Context) -> rollout_pb2.BeginResponse:
        """Starts a phase; repeating it with its idempotency key joins it."""
        self._fence.check(request.fence)
        async with self._lock:
            if self._phase is not None and request.idempotency_key and self._begun_key == request.idempotency_key:
                return rollout_pb2.BeginResponse()
            _check_begin(request)
            if self._buffer is None:
                raise RequestError("this engine was started without a buffer.", field="spec.buffer_url")
            self._weights.require(request.weight_version)
            self._require_device()
            if self._phase is not None:
                await self._phase.close()
            kind = OrderedPhase if self._deterministic else RolloutPhase
            self._phase = kind(
                self._engine,
                self._buffer,
                self._spec.holder,
                request,
                decode=self._decode,
                on_trouble=self._on_trouble,
            )
            self._begun_key = request.idempotency_key
            self._phase.start()
        return rollout_pb2.BeginResponse()

    @guarded
    async def Pause(self, request: rollout_pb2.PauseRequest, context: Context) -> rollout_pb2.PauseResponse:
        """Ends the phase; repeating it answers the same."""
        self._fence.check(request.fence)
        async with self._lock:
            if self._phase is not None:
                await self._phase.pause(request.deadline_seconds or self._deadlines.pause_s)
                self._progress = self._phase.progress
                self._phase = None
        return rollout_pb2.PauseResponse(progress=self._progress)

    @guarded
    async def Abort(self, request: rollout_pb2.AbortRequest, context: Context) -> rollout_pb2.AbortResponse:
        """Ends the named trajectories."""
        self._fence.check(request.fence)
        num_aborted = self._phase.abort(list(request.trajectory_ids)) if self._phase is not None else 0
        return rollout_pb2.AbortResponse(num_aborted=num_aborted)

    # Outside the ledger ------------------------------------------------------------------------------

    @guarded_stream
    async def Generate(
        self, request: AsyncIterator[rollout_pb2.GenerateRequest], context: Context
    ) -> AsyncIterator[rollout_pb2.GenerateResponse]:
        """Streams tokens; needs admitted weights and the device."""
        version = self._weights.require()
        self._require_device()
        call = GenerateCall(self._engine, next(self._call_ids), version, self._decode, at_once=self._deterministic)
        self._generates.add(call)
        try:
            async for response in call.run(request):
                yield response
        finally:
            self._generates.discard(call)

    @guarded
    async def ScoreTokens(
        self, request: rollout_pb2.ScoreTokensRequest, context: Context
    ) -> rollout_pb2.ScoreTokensResponse:
        """Log-probabilities of given tokens under the loaded weights, admitted or not."""
        self._require_device()
        for sequence in request.sequences:
            _check_scorable(len(sequence.token_ids), self._engine.max_sequence_tokens)
        scores = await self._engine.score([list(one.token_ids) for one in request.sequences], self._deadlines.sync_s)
        return rollout_pb2.ScoreTokensResponse(
            scores=[common_pb2.CanaryEcho(log_probs=one) for one in scores],
            weight_version=self._weights.loaded_version,
        )

    # Weights and the device --------------------------------------------------------------------------

    @guarded
    async def UpdateWeights(
        self, request: rollout_pb2.UpdateWeightsRequest, context: Context
    ) -> rollout_pb2.UpdateWeightsResponse:
        """Loads and attests; takes the device back first if it was released."""
        self._fence.check(request.fence)
        async with self._lock:
            key, attestation = self._attested
            repeated = request.idempotency_key and key == request.idempotency_key
            if repeated and self._weights.loaded_version == attestation.version:
                return rollout_pb2.UpdateWeightsResponse(attestation=attestation)
            if self._phase is not None:
                raise RequestError(
                    "weights cannot change while a rollout phase runs.", field="manifest", fix="Call Pause first."
                )
            for canary in request.manifest.canaries:
                _check_scorable(len(canary.token_ids), self._engine.max_sequence_tokens)
            for call in list(self._generates):
                call.end()
            if self._device.released:
                await self._device.acquire()
            attestation = await self._weights.update(
                request.manifest, request.fence, self._deadlines.sync_s, canaries=self._device.may_compute
            )
            self._attested = (request.idempotency_key, attestation)
        return rollout_pb2.UpdateWeightsResponse(attestation=attestation)

    @guarded
    async def Admit(self, request: rollout_pb2.AdmitRequest, context: Context) -> rollout_pb2.AdmitResponse:
        """Lets the loaded version generate."""
        self._fence.check(request.fence)
        async with self._lock:
            self._weights.admit(request.version)
        return rollout_pb2.AdmitResponse()

    @guarded
    async def ReleaseDevice(
        self, request: rollout_pb2.RolloutReleaseDeviceRequest, context: Context
    ) -> rollout_pb2.RolloutReleaseDeviceResponse:
        """Lets go of the device; a phase must have been paused."""
        self._fence.check(request.fence)
        async with self._lock:
            if self._phase is not None:
                raise RequestError("a rollout phase runs.", field="method", fix="Call Pause first.")
            for call in list(self._generates):
                call.end()
            default = "idle" if self._spec.device == "cpu" else "sleep"
            if await self._device.release(request.method or default):
                self._weights.lost()
        return rollout_pb2.RolloutReleaseDeviceResponse(device=self._device.report())

    @guarded
    async def AcquireDevice(
        self, request: rollout_pb2.RolloutAcquireDeviceRequest, context: Context
    ) -> rollout_pb2.RolloutAcquireDeviceResponse:
        """Takes the device back."""
        self._fence.check(request.fence)
        async with self._lock:
            await self._device.acquire(request.share or "all")
        return rollout_pb2.RolloutAcquireDeviceResponse(device=self._device.report())

    # Life --------------------------------------------------------------------------------------------

    def attach(self, server: Server) -> None:
        """The server whose health this engine reports."""
        self._server = server

    def on_engine_failure(self, error: CrescendoError) -> None:
        """The engine died: health says so until the process is replaced."""
        log.error("engine failure: %s", error)
        self._report_health(serving=False)

    async def close(self, grace_s: float) -> None:
        """Parks and flushes what runs, within grace_s."""
        phase, self._phase = self._phase, None
        if phase is not None:
            try:
                await phase.pause(grace_s)
            except CrescendoError as error:
                log.warning("unfinished work could not be parked: %s", error)
            await phase.close()
        self._weights.close()

    def _on_trouble(self, trouble: str) -> None:
        self._report_health(serving=not trouble and self._engine.failure is None)

    def _report_health(self, *, serving: bool) -> None:
        if self._server is None:
            return
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE_NAME):
            task = asyncio.ensure_future(self._server.health.set(name, status))
            self._health_tasks.add(task)
            task.add_done_callback(self._health_tasks.discard)

    def _state(self) -> str:
        if self._engine.failure is not None or (self._phase is not None and self._phase.error is not None):
            return "failed"
        if self._phase is not None:
            if self._phase.trouble:
                return "buffer_refuses" if self._phase.refused else "buffer_unreachable"
            return "rolling_out"
        if self._device.released:
            return "released"
        return "ready" if self._weights.admitted else "waiting_for_weights"

    def _current_progress(self) -> rollout_pb2.RolloutProgress:
        return self._phase.progress if self._phase is not None else self._progress

    def _require_device(self) -> None:
        if not self._device.may_compute:
            raise RequestError(
                "the engine has released its device, or its cache.", field="device", fix="Call AcquireDevice first."
            )


def _check_begin(request: rollout_pb2.BeginRequest) -> None:
    for name in ("max_response_tokens", "max_concurrency", "lease_seconds"):
        if getattr(request, name) <= 0:
            raise RequestError(f"begin.{name} is {getattr(request, name)}; it must be positive.", field=f"begin.{name}")
    if not request.sampling.temperature >= 0:
        raise RequestError(f"begin.sampling.temperature is {request.sampling.temperature}; it must not be negative.")


def _check_scorable(num_tokens: int, longest: int) -> None:
    if not 2 <= num_tokens < longest:
        raise RequestError(
            f"a sequence to score has {num_tokens} tokens; it must have at least 2 and less than {longest}.",
            field="token_ids",
        )


class RolloutServer:
    """A started service."""

    def __init__(
        self, server: Server, servicer: RolloutServicer, engine: EngineThread, buffer: ExperienceBuffer | None
    ) -> None:
        self._server = server
        self._servicer = servicer
        self._engine = engine
        self._buffer = buffer

    @property
    def address(self) -> str:
        """host:port of the gRPC server."""
        return self._server.address

    async def stop(self, grace_s: float) -> None:
        """Parks work, drains calls, ends the engine."""
        await self._servicer.close(grace_s)
        await self._server.stop(grace_s)
        await self._engine.stop()
        if self._buffer is not None:
            await self._buffer.close()


async def start(spec: ServiceSpec) -> RunningService:
    """Starts the service that the spec describes; the entry point `rollout` of `crescendo.services`."""
    config = load_resolved(RunFolder(Path(spec.run_folder)).config)
    buffer: ExperienceBuffer | None = None
    if spec.buffer_url:
        from crescendo.buffer import connect

        buffer = await connect(spec.buffer_url, spec.run_id)
    return await start_with(spec, config, buffer)


async def start_with(spec: ServiceSpec, config: Config, buffer: ExperienceBuffer | None) -> RolloutServer:
    """As `start`, with the config and the buffer given; takes over the buffer."""
    settings = EngineSettings.of(spec, config)
    engine = EngineThread(lambda: make_engine(config.rollout.engine, settings), lockstep=settings.deterministic)
    await engine.start(config.deadlines.start_s)
    servicer = RolloutServicer(spec, config, engine, buffer)
    engine.on_failure = servicer.on_engine_failure
    server = await serve(
        lambda one: rollout_pb2_grpc.add_RolloutServiceServicer_to_server(servicer, one),
        [SERVICE_NAME],
        token=spec.token,
    )
    servicer.attach(server)
    return RolloutServer(server, servicer, engine, buffer)
