"""What the operator takes from a run's controller, asked over real gRPC."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from crescendo.common.errors import EnvironmentProblem
from crescendo.common.rpc import serve
from crescendo.controller.operator.progress import MAX_ANSWER_BYTES, ControllerRuns
from crescendo.controller.operator.requests import Request
from crescendo.controller.operator.writes import Call
from crescendo.proto.v1 import controller_pb2 as pb
from crescendo.proto.v1 import controller_pb2_grpc


class Run(controller_pb2_grpc.ControllerServiceServicer):
    """A run's controller that says what it is told to."""

    def __init__(self) -> None:
        self.status = pb.RunStatus(name="math", phase="rollout", iteration=3)

    async def GetStatus(self, request: Any, context: Any) -> pb.GetRunStatusResponse:
        return pb.GetRunStatusResponse(status=self.status)


@pytest.fixture
async def run(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Run, str]]:
    monkeypatch.delenv("CRESCENDO_IDENTITY", raising=False)
    servicer = Run()

    def register(server: grpc.aio.Server) -> None:
        controller_pb2_grpc.add_ControllerServiceServicer_to_server(servicer, server)

    server = await serve(register, ["crescendo.v1.ControllerService"])
    yield servicer, server.address
    await server.stop(0.1)


async def test_without_a_certificate_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRESCENDO_IDENTITY", str(tmp_path))
    runs = ControllerRuns()
    with pytest.raises(EnvironmentProblem, match="cannot be read"):
        await runs.report("localhost:1")
    assert await runs.call("localhost:1", Call("stop")) is False
    assert await runs.ask("localhost:1", Request("pause", "", "word")) is None


async def test_an_answer_without_end_is_none(run: tuple[Run, str]) -> None:
    servicer, address = run
    report = await ControllerRuns().report(address)
    assert report is not None
    assert (report.phase, report.iteration) == ("rollout", 3)
    servicer.status.message = "x" * (MAX_ANSWER_BYTES + 1)
    assert await ControllerRuns().report(address) is None
