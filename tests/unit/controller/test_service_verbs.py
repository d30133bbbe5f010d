"""Verbs that the controller's service refuses, and what it tells."""

from pathlib import Path

import pytest

from crescendo.common.errors import RequestError
from crescendo.common.rpc import Client, Endpoint, serve
from crescendo.common.runfolder import RunFolder
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.control import Control
from crescendo.controller.service import SERVICE_NAME, ControllerServicer
from crescendo.proto.v1 import controller_pb2, controller_pb2_grpc


async def scale(tmp_path: Path, control: Control, num_engines: int) -> None:
    board = Board(RunFolder.create(tmp_path / "run", "run"), "run")
    servicer = ControllerServicer(board, control)
    server = await serve(servicer.register, [SERVICE_NAME], token="t")
    client = Client(Endpoint(server.address, "t"), controller_pb2_grpc.ControllerServiceStub)
    try:
        request = controller_pb2.ScaleEnginesRequest(num_engines=num_engines)
        await client.call(client.stub.ScaleEngines, request, timeout_s=10.0)
    finally:
        await client.close()
        await server.stop(0.1)
        board.close()


async def test_engines_are_scaled_to_at_least_one(tmp_path: Path) -> None:
    control = Control()
    await scale(tmp_path / "a", control, 3)
    assert control.num_engines == 3
    with pytest.raises(RequestError, match="num_engines is 0; it must be at least 1"):
        await scale(tmp_path / "b", control, 0)
    assert control.num_engines == 3


async def test_engines_with_fixed_places_are_not_scaled(tmp_path: Path) -> None:
    control = Control()
    control.fixed_engines = "they stand on GPUs"
    with pytest.raises(RequestError, match="they stand on GPUs"):
        await scale(tmp_path, control, 2)
    assert control.num_engines is None
