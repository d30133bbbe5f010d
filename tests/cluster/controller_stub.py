"""A run's ControllerService for the operator to ask, where pods are fake: answers what a test says, notes the verbs.

With a certificate of the operator's own authority, so that both sides prove who they are. Runs in a thread.
"""

import asyncio
import threading
from datetime import UTC, datetime
from pathlib import Path

import grpc

from crescendo.common.rpc import serve
from crescendo.common.rpc.identity import SERVER_NAME, VARIABLE, Identity
from crescendo.controller.operator.api import KubernetesApi
from crescendo.controller.operator.authority import load_authority
from crescendo.controller.operator.certificates import KeyPair, new_leaf
from crescendo.controller.operator.options import Options
from crescendo.controller.service import SERVICE_NAME
from crescendo.proto.v1 import controller_pb2 as pb
from crescendo.proto.v1 import controller_pb2_grpc
from tests.cluster.kube.control_plane import ControlPlane

Context = grpc.aio.ServicerContext


class StubRun(controller_pb2_grpc.ControllerServiceServicer):
    """status: what it answers; verbs: what it was asked for; commits: whether StopRun stops the run."""

    def __init__(self) -> None:
        self.status = pb.RunStatus(
            run_id="stub", phase="rollout", iteration=3, max_iterations=10, stage="context-32", weight_version=4,
            committed_iteration=-1, eta_seconds=60, metrics={"reward": 0.5, "length": 100.0},
        )  # fmt: skip
        self.verbs: list[str] = []
        self.commits = True

    async def GetStatus(self, request: pb.GetRunStatusRequest, context: Context) -> pb.GetRunStatusResponse:
        """The status."""
        return pb.GetRunStatusResponse(status=self.status)

    async def StopRun(self, request: pb.StopRunRequest, context: Context) -> pb.StopRunResponse:
        """Stops, unless told not to answer so."""
        self.verbs.append(f"stop commit={request.commit}")
        if self.commits:
            self.status.phase = "stopped"
        return pb.StopRunResponse()

    async def PromoteStage(self, request: pb.PromoteStageRequest, context: Context) -> pb.PromoteStageResponse:
        """Enters the stage."""
        self.verbs.append(f"promote {request.stage}")
        self.status.stage = request.stage
        return pb.PromoteStageResponse(stage=request.stage)

    async def PauseRun(self, request: pb.PauseRunRequest, context: Context) -> pb.PauseRunResponse:
        """Stands still."""
        self.verbs.append("pause")
        self.status.paused = True
        return pb.PauseRunResponse()

    async def ListMetrics(self, request: pb.ListMetricsRequest, context: Context) -> pb.ListMetricsResponse:
        """Three iterations."""
        rows = [
            pb.MetricsRow(row=number, stage="context-32", values={"iteration": number + 1, "reward": number / 4})
            for number in range(3)
        ]
        return pb.ListMetricsResponse(rows=rows[request.after_row :])

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        """One."""
        return pb.ListEventsResponse(events=[pb.Event(sequence=1, kind="stage.entered", message="context-32")])

    async def ListSamples(self, request: pb.ListSamplesRequest, context: Context) -> pb.ListSamplesResponse:
        """A hostile one."""
        return pb.ListSamplesResponse(samples=[pb.Sample(prompt="2+2", response="<script>alert(1)</script>four")])


class StubController:
    """Serves a StubRun between `start` and `stop`. address: host:port."""

    def __init__(self) -> None:
        self.run = StubRun()
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)

    def start(self) -> None:
        """Serves; CRESCENDO_IDENTITY names the folder of its certificate."""
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        """Ends it."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(20)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        def register(server: grpc.aio.Server) -> None:
            controller_pb2_grpc.add_ControllerServiceServicer_to_server(self.run, server)

        server = await serve(register, [SERVICE_NAME], roles=frozenset({"operator", "console"}))
        self.address = server.address
        self._ready.set()
        await self._ended.wait()
        await server.stop(0.1)


def write_identity(plane: ControlPlane, folder: Path, role: str = "controller") -> dict[str, str]:
    """A certificate from the authority in the cluster, made as the operator makes it; the environment."""
    authority = asyncio.run(_authority(plane))
    uri = Identity("anywhere", "stub", role).uri
    leaf = new_leaf(authority, uri, [SERVER_NAME], datetime.now(UTC), days=1)
    folder.mkdir()
    for name, content in (("tls.crt", leaf.certificate), ("tls.key", leaf.key), ("ca.crt", authority.certificate)):
        (folder / name).write_bytes(content)
    return {VARIABLE: str(folder)}


async def _authority(plane: ControlPlane) -> KeyPair:
    api = KubernetesApi(plane.admin)
    try:
        return await load_authority(api, Options())
    finally:
        await api.close()
