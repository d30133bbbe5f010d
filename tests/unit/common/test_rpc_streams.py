"""Refused streams: the reason reaches a client that is still writing, which grpc.aio alone does not promise."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crescendo.common.errors import RequestError
from crescendo.common.rpc import Client, Endpoint, guarded_stream, serve
from crescendo.common.rpc.status import FINISH_WRITING_S, Context
from crescendo.proto.v1 import rollout_pb2, rollout_pb2_grpc

NUM_CALLS = 200
MESSAGES = 4


class Refusing(rollout_pb2_grpc.RolloutServiceServicer):
    """Refuses Generate. after: this many requests were read."""

    def __init__(self, after: int) -> None:
        self._after = after

    @guarded_stream
    async def Generate(
        self, request: AsyncIterator[rollout_pb2.GenerateRequest], context: Context
    ) -> AsyncIterator[rollout_pb2.GenerateResponse]:
        for _ in range(self._after):
            await anext(request)
        if self._after >= 0:
            raise RequestError("no device", field="device")
        yield rollout_pb2.GenerateResponse()


async def refusals(after: int, token: str = "", *, num_calls: int = NUM_CALLS, endless: bool = False) -> list[str]:
    """What the caller is told, call by call."""

    async def send() -> AsyncIterator[rollout_pb2.GenerateRequest]:
        for number in range(MESSAGES):
            yield rollout_pb2.GenerateRequest(request_id=str(number), prompt_token_ids=range(500))
        if endless:
            await asyncio.Event().wait()

    async def one(client: Client[Any]) -> str:
        with pytest.raises(RequestError) as caught:
            async for _ in client.stream(client.stub.Generate, send(), timeout_s=20):
                pass
        return caught.value.message

    server = await serve(
        lambda grpc_server: rollout_pb2_grpc.add_RolloutServiceServicer_to_server(Refusing(after), grpc_server),
        ["crescendo.v1.RolloutService"],
        token=token,
    )
    client = Client(Endpoint(server.address), rollout_pb2_grpc.RolloutServiceStub)
    try:
        return [await one(client) for _ in range(num_calls)]
    finally:
        await client.close()
        await server.stop(0.1)


@pytest.mark.parametrize("after", [0, 1, MESSAGES])
async def test_a_client_that_writes_still_learns_why(after: int) -> None:
    assert set(await refusals(after)) == {"no device"}


async def test_a_client_without_the_token_learns_that() -> None:
    assert set(await refusals(0, token="secret")) == {"the service refused the token: missing or wrong token"}


async def test_a_client_that_never_ends_its_requests_is_not_waited_for() -> None:
    clock = asyncio.get_running_loop().time
    begun = clock()
    assert await refusals(0, num_calls=1, endless=True) == ["no device"]
    assert clock() - begun < FINISH_WRITING_S + 5
