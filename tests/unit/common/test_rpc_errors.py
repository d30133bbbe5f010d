"""Errors on the wire: a refusal's delay, which a client waits, and long messages."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from crescendo.common.errors import OverloadError, RequestError
from crescendo.common.rpc import Client, Endpoint, guarded, serve, to_error
from crescendo.common.rpc.status import Context
from crescendo.proto.v1 import reward_pb2, reward_pb2_grpc

REQUEST = reward_pb2.GetExecutorStatusRequest()
DELAY_S = 0.4


class Refusing(reward_pb2_grpc.ExecutorServiceServicer):
    """Refuses the first calls; a stranger's way (RetryInfo alone) or ours."""

    def __init__(self, times: int, *, is_stranger: bool) -> None:
        self._left = times
        self._is_stranger = is_stranger

    @guarded
    async def GetStatus(
        self, request: reward_pb2.GetExecutorStatusRequest, context: Context
    ) -> reward_pb2.GetExecutorStatusResponse:
        self._left -= 1
        if self._left < 0:
            return reward_pb2.GetExecutorStatusResponse(num_workers=1)
        if self._is_stranger:
            status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="busy")
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=Duration(nanos=int(DELAY_S * 1e9))))
            await context.abort_with_status(rpc_status.to_status(status))
        raise OverloadError("full", retry_after_s=DELAY_S)


@asynccontextmanager
async def client_of(servicer: Refusing) -> AsyncIterator[Client[reward_pb2_grpc.ExecutorServiceStub]]:
    server = await serve(lambda one: reward_pb2_grpc.add_ExecutorServiceServicer_to_server(servicer, one), ["s"])
    client = Client(Endpoint(server.address), reward_pb2_grpc.ExecutorServiceStub)
    try:
        yield client
    finally:
        await client.close()
        await server.stop(0.1)


async def test_the_delay_travels_as_retry_info(caplog: pytest.LogCaptureFixture) -> None:
    async with client_of(Refusing(1, is_stranger=False)) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.GetStatus(REQUEST, timeout=10.0)
        status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
        retry = error_details_pb2.RetryInfo()
        assert status is not None
        assert any(detail.Unpack(retry) for detail in status.details)
        assert retry.retry_delay.ToMilliseconds() == DELAY_S * 1e3
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not caplog.records  # a refusal is no surprise to the service


@pytest.mark.parametrize("is_stranger", [False, True])
async def test_a_client_waits_as_long_as_it_was_asked_to(is_stranger: bool) -> None:
    async with client_of(Refusing(2, is_stranger=is_stranger)) as client:
        started_s = asyncio.get_running_loop().time()
        answer = await client.call(client.stub.GetStatus, REQUEST, timeout_s=20.0, attempts=3)
        assert answer.num_workers == 1
        assert asyncio.get_running_loop().time() - started_s >= 2 * DELAY_S


@pytest.mark.parametrize("text", ["x" * 100_000, "\u4e16" * 50_000, "\udc80" * 5_000])
async def test_a_message_that_quotes_too_much_still_arrives(text: str) -> None:
    class Quoting(Refusing):
        @guarded
        async def GetStatus(
            self, request: reward_pb2.GetExecutorStatusRequest, context: Context
        ) -> reward_pb2.GetExecutorStatusResponse:
            raise RequestError(f"bad: {text}", field=text, fix=text)

    async with client_of(Quoting(0, is_stranger=False)) as client:
        with pytest.raises(RequestError, match="bad: ") as caught:
            await client.call(client.stub.GetStatus, REQUEST, timeout_s=10.0)
        assert caught.value.message.endswith("...")


async def test_bytes_that_are_no_request_are_refused_by_type() -> None:
    async with client_of(Refusing(0, is_stranger=False)) as client:
        raw = client._channel.unary_unary("/crescendo.v1.ExecutorService/GetStatus")
        assert await raw(b"", timeout=10.0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(b"\xff\xff\xff", timeout=10.0)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert isinstance(to_error(caught.value), RequestError)
