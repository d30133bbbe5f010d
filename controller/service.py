"""ControllerService: how people, the console and the operator see and steer one run."""

import asyncio
from collections.abc import AsyncIterator

import grpc

from crescendo.common.errors import DeadlineError, RequestError
from crescendo.common.rpc import guarded, guarded_stream
from crescendo.common.rpc.status import Context
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.control import Control
from crescendo.proto.v1 import controller_pb2 as pb
from crescendo.proto.v1 import controller_pb2_grpc

SERVICE_NAME = "crescendo.v1.ControllerService"
MIN_INTERVAL_S = 0.1
COMMIT_POLL_S = 0.1
DEFAULT_COMMIT_DEADLINE_S = 600.0


class ControllerServicer(controller_pb2_grpc.ControllerServiceServicer):
    """Reads the board, sets the controls. Lives on the controller's event loop."""

    def __init__(self, board: Board, control: Control) -> None:
        self._board = board
        self._control = control

    def register(self, server: grpc.aio.Server) -> None:
        """Adds itself to a server."""
        controller_pb2_grpc.add_ControllerServiceServicer_to_server(self, server)

    @guarded
    async def GetStatus(self, request: pb.GetRunStatusRequest, context: Context) -> pb.GetRunStatusResponse:
        """The status now."""
        return pb.GetRunStatusResponse(status=self._snapshot())

    @guarded_stream
    async def WatchStatus(
        self, request: pb.WatchStatusRequest, context: Context
    ) -> AsyncIterator[pb.WatchStatusResponse]:
        """The status every interval, until the caller leaves."""
        interval_s = max(MIN_INTERVAL_S, request.interval_seconds or 1.0)
        while True:
            yield pb.WatchStatusResponse(status=self._snapshot())
            await asyncio.sleep(interval_s)

    @guarded
    async def ListMetrics(self, request: pb.ListMetricsRequest, context: Context) -> pb.ListMetricsResponse:
        """Rows from a row number on (after_row: rows already known), at most `limit`."""
        rows = self._board.rows[max(0, request.after_row) :]
        return pb.ListMetricsResponse(rows=rows[: request.limit] if request.limit > 0 else rows)

    @guarded
    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        """Events after a sequence number."""
        found = [event for event in self._board.events if event.sequence > request.after_sequence]
        return pb.ListEventsResponse(events=found)

    @guarded
    async def ListSamples(self, request: pb.ListSamplesRequest, context: Context) -> pb.ListSamplesResponse:
        """The newest samples, newest first."""
        newest = list(reversed(self._board.samples))
        return pb.ListSamplesResponse(samples=newest[: request.limit or len(newest)])

    @guarded
    async def PauseRun(self, request: pb.PauseRunRequest, context: Context) -> pb.PauseRunResponse:
        """Stands still at the next safe point."""
        self._control.pause()
        self._board.event("run.paused", "paused by a person; running responses are parked")
        return pb.PauseRunResponse()

    @guarded
    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Context) -> pb.ResumeRunResponse:
        """Goes on."""
        self._control.resume()
        self._board.event("run.resumed", "resumed by a person")
        return pb.ResumeRunResponse()

    @guarded
    async def PromoteStage(self, request: pb.PromoteStageRequest, context: Context) -> pb.PromoteStageResponse:
        """Leaves the current stage after this iteration; forward only."""
        stages = list(self._board.status.stages)
        active = next((number for number, stage in enumerate(stages) if stage.state == "active"), None)
        if active is None:
            raise RequestError("the run is not in a stage that could be left.", field="stage")
        later = [stage.name for stage in stages[active + 1 :]]
        if request.stage and request.stage not in later:
            raise RequestError(
                f"stage {request.stage!r} does not follow {stages[active].name!r}; later stages: "
                f"{', '.join(later) or 'none'}.",
                field="stage",
                fix="Name a later stage, or none for the next.",
            )
        wanted = request.stage or (later[0] if later else "")
        self._control.promote_to = wanted
        self._board.event("stage.promotion_requested", f"{stages[active].name} will be left after this iteration")
        return pb.PromoteStageResponse(stage=wanted)

    @guarded
    async def CommitRun(self, request: pb.CommitRunRequest, context: Context) -> pb.CommitRunResponse:
        """Commits after this iteration and waits for it, within the deadline."""
        before = self._board.status.committed_iteration
        self._control.commit_requested = True
        if request.no_wait:
            return pb.CommitRunResponse(iteration=before)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (request.deadline_seconds or DEFAULT_COMMIT_DEADLINE_S)
        while self._control.commit_requested or self._board.status.committed_iteration == before:
            if loop.time() > deadline:
                raise DeadlineError("the commit did not happen within its deadline.", field="deadline_seconds")
            await asyncio.sleep(COMMIT_POLL_S)
        return pb.CommitRunResponse(iteration=self._board.status.committed_iteration)

    @guarded
    async def StopRun(self, request: pb.StopRunRequest, context: Context) -> pb.StopRunResponse:
        """Ends the run at the next safe point; it can be resumed."""
        self._control.stop(commit=request.commit)
        self._board.event("run.stopping", "stopping at the next safe point")
        return pb.StopRunResponse()

    @guarded
    async def DrainRun(self, request: pb.DrainRunRequest, context: Context) -> pb.DrainRunResponse:
        """Stands still after this iteration and a commit; a repeated key changes nothing."""
        if not request.idempotency_key or request.idempotency_key != self._control.drain_key:
            self._control.drain_key = request.idempotency_key
            self._control.drain_requested = True
            self._board.event("run.draining", "ends this iteration, commits, then stands still")
        return pb.DrainRunResponse()

    @guarded
    async def QuarantineEngine(
        self, request: pb.QuarantineEngineRequest, context: Context
    ) -> pb.QuarantineEngineResponse:
        """Takes an engine out, at once in a rollout phase, else from the next on; the last one stays."""
        control, name = self._control, request.worker_id
        if control.fixed_engines:
            raise RequestError(f"{name} cannot be taken out: {control.fixed_engines}.", field="worker_id")
        engines = {worker.worker_id for worker in self._board.status.workers if worker.role == "rollout"}
        if name in control.quarantine.engines:
            return pb.QuarantineEngineResponse()
        if name not in engines:
            raise RequestError(
                f"{name!r} is no engine of this run; it has: {', '.join(sorted(engines)) or 'none yet'}.",
                field="worker_id",
                fix="Name one of these.",
            )
        if not engines - control.quarantine.engines - {name}:
            raise RequestError(f"{name} is the only engine left.", field="worker_id", fix="Add one first.")
        control.quarantine.add(name)
        self._board.event("engine.quarantined", f"{name} is taken out of service", severity="warning", worker=name)
        return pb.QuarantineEngineResponse()

    @guarded
    async def ScaleEngines(self, request: pb.ScaleEnginesRequest, context: Context) -> pb.ScaleEnginesResponse:
        """Sets how many engines the run has, at once in a rollout phase, else from the next on."""
        if request.num_engines < 1:
            raise RequestError(f"num_engines is {request.num_engines}; it must be at least 1.", field="num_engines")
        if self._control.fixed_engines:
            raise RequestError(
                f"num_engines cannot change: {self._control.fixed_engines}.", field="num_engines",
                fix="Set rollout.num_engines before the run starts.",
            )  # fmt: skip
        self._control.num_engines = request.num_engines
        self._control.quarantine.clear()
        self._board.event("engines.scaled", f"{request.num_engines} engines from now on, as a person wished")
        return pb.ScaleEnginesResponse()

    def _snapshot(self) -> pb.RunStatus:
        status = self._board.snapshot()
        status.paused = status.paused or self._control.paused
        return status
