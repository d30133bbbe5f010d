"""Which executor is asked, and what its failure leads to; the executors are gRPC servers in this process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from crescendo.common.errors import ConfigError, CrescendoError, OverloadError, RequestError, WorkerLostError
from crescendo.common.rpc import guarded, serve
from crescendo.common.rpc.status import Context
from crescendo.proto.v1 import reward_pb2, reward_pb2_grpc
from crescendo.reward_service.executors import Executors

Answer = Callable[[reward_pb2.ExecuteRequest], Awaitable[None]]
ITEMS = [reward_pb2.ScoreItem(item_id="a"), reward_pb2.ScoreItem(item_id="b")]


class Stand(reward_pb2_grpc.ExecutorServiceServicer):
    """Answers with an empty result an item, after `before` had its say."""

    def __init__(self, before: Answer | None = None) -> None:
        self.num_calls = 0
        self._before = before

    @guarded
    async def Execute(self, request: reward_pb2.ExecuteRequest, context: Context) -> reward_pb2.ExecuteResponse:
        self.num_calls += 1
        if self._before is not None:
            await self._before(request)
        return reward_pb2.ExecuteResponse(results=[reward_pb2.ScoreResult(item_id=i.item_id) for i in request.items])


@asynccontextmanager
async def running(*stands: Stand) -> AsyncIterator[list[str]]:
    servers = []
    for stand in stands:

        def register(server: object, stand: Stand = stand) -> None:
            reward_pb2_grpc.add_ExecutorServiceServicer_to_server(stand, server)  # type: ignore[arg-type]

        servers.append(await serve(register, ["crescendo.v1.ExecutorService"]))
    try:
        yield [server.address for server in servers]
    finally:
        for server in servers:
            await server.stop(0.1)


def raising(error: CrescendoError, times: int = 1_000) -> Answer:
    left = iter(range(times))

    async def answer(request: reward_pb2.ExecuteRequest) -> None:
        if next(left, None) is not None:
            raise error

    return answer


async def execute(executors: Executors, timeout_s: float = 10.0, avoid: str = "") -> str:
    graded = await executors.execute(ITEMS, 1.0, timeout_s, fresh=False, avoid=avoid)
    assert [result.item_id for result in graded.results] == ["a", "b"]
    return graded.executor


async def test_load_is_spread() -> None:
    gate, all_in = asyncio.Event(), asyncio.Event()

    async def wait(request: reward_pb2.ExecuteRequest) -> None:
        if first.num_calls + second.num_calls == 6:
            all_in.set()
        await gate.wait()

    first, second = Stand(wait), Stand(wait)
    async with running(first, second) as addresses:
        executors = await Executors.connect(", ".join(addresses))
        calls = [asyncio.create_task(execute(executors)) for _ in range(6)]
        async with asyncio.timeout(10.0):
            await all_in.wait()
        gate.set()
        assert sorted(await asyncio.gather(*calls)) == sorted(addresses * 3)
        await executors.close()


async def test_a_fault_is_tried_elsewhere_and_a_lost_executor_left_alone() -> None:
    lost, good = Stand(raising(WorkerLostError("gone"))), Stand()
    async with running(lost, good) as (bad_address, good_address):
        executors = await Executors.connect(f"{bad_address},{good_address}")
        assert [await execute(executors) for _ in range(4)] == [good_address] * 4
        assert lost.num_calls == 1
        assert (executors.num_failovers, executors.num_ready) == (1, 1)
        await executors.close()


async def test_the_one_to_avoid_is_asked_only_when_there_is_no_other() -> None:
    async with running(Stand(), Stand()) as (first, second):
        executors = await Executors.connect(f"{first},{second}")
        assert [await execute(executors, avoid=first) for _ in range(3)] == [second] * 3
        await executors.close()
        alone = await Executors.connect(first)
        assert await execute(alone, avoid=first) == first
        await alone.close()


async def test_a_full_executor_is_asked_again_when_it_said() -> None:
    full = Stand(raising(OverloadError("full", retry_after_s=0.3), times=5))
    async with running(full) as (address,):
        executors = await Executors.connect(address)
        started_s = asyncio.get_running_loop().time()
        await execute(executors)
        assert 1.4 < asyncio.get_running_loop().time() - started_s < 5.0
        assert full.num_calls == 6
        full._before = raising(OverloadError("full", retry_after_s=60.0))
        with pytest.raises(OverloadError):
            await execute(executors, timeout_s=2.0)
        await executors.close()


@pytest.mark.parametrize("error", [RequestError("no"), WorkerLostError("gone")])
async def test_what_cannot_be_mended_is_raised(error: CrescendoError) -> None:
    async with running(Stand(raising(error))) as (address,):
        executors = await Executors.connect(address)
        with pytest.raises(type(error), match=error.message):
            await execute(executors)
        await executors.close()


async def test_names_are_looked_up() -> None:
    async with running(Stand()) as (address,):
        executors = await Executors.connect(f"localhost:{address.rpartition(':')[2]}")
        assert address in executors.addresses
        await executors.refresh()
        assert await execute(executors) in executors.addresses
        await executors.close()


async def test_a_wrong_address_is_named() -> None:
    with pytest.raises(ConfigError, match="'executor' is not host:port"):
        await Executors.connect("127.0.0.1:1,executor")
