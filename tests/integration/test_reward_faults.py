"""Who pays when processes die: one item at most, and never with a score of 0."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from crescendo.common.errors import CrescendoError, OverloadError
from crescendo.common.rpc import Client, Endpoint
from crescendo.proto.v1 import common_pb2, reward_pb2, reward_pb2_grpc
from crescendo.reward_service import executor, reward
from crescendo.reward_service.workers import Pool
from tests.integration.reward_processes import EXACT, TOKEN, is_running, launch, score_item, spec_of, wait_until

ENDLESS = r"\boxed{99999999999!}"
DEADLINE_S = 30.0


@asynccontextmanager
async def running_pool(
    num_workers: int = 1, recycle_after: int = 1000, max_queued: int = 10_000
) -> AsyncIterator[Pool]:
    pool = await Pool(num_workers, 512 << 20, recycle_after, ("math_verify",), max_queued).start()
    try:
        yield pool
    finally:
        await pool.close()


async def settle(condition: object, timeout_s: float = 20.0) -> None:
    """Waits on the event loop until a condition holds."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():  # type: ignore[operator]
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_worker_killed_from_outside_costs_one_item_and_no_score() -> None:
    async with running_pool() as pool:
        (pid,) = pool.worker_pids
        before_s = cpu_seconds(pid)
        items = [score_item("a", "#9", "9", EXACT), score_item("slow", ENDLESS, "1"), score_item("b", "#9", "9", EXACT)]
        grading = asyncio.create_task(pool.grade(items, DEADLINE_S))
        await settle(lambda: cpu_seconds(pid) > before_s + 0.2)
        os.kill(pid, signal.SIGKILL)
        first, lost, last = await asyncio.wait_for(grading, 20.0)
        assert (lost.fault.code, lost.fault.retryable) == ("WorkerLostError", True)
        assert not lost.components
        assert [r.components[0].verdict for r in (first, last)] == [common_pb2.VERDICT_CORRECT] * 2
        await settle(lambda: pool.num_workers == 1)
        assert (pool.counters.num_lost, pool.counters.num_killed) == (1, 0)
        assert pool.worker_pids != [pid]
        assert not is_running(pid)


async def test_a_killed_zygote_is_replaced() -> None:
    async with running_pool(num_workers=2) as pool:
        pids = [pool.zygote_pid, *pool.worker_pids]
        os.kill(pool.zygote_pid, signal.SIGKILL)
        await settle(lambda: not any(is_running(pid) for pid in pids))
        results = await asyncio.wait_for(
            pool.grade([score_item(str(i), "#9", "9", EXACT) for i in range(50)], 5.0), 60.0
        )
        assert all(result.components[0].raw == 1.0 for result in results)
        assert pool.zygote_pid not in pids


async def test_workers_are_recycled_and_lose_nothing() -> None:
    async with running_pool(num_workers=2, recycle_after=10) as pool:
        pids = set(pool.worker_pids)
        results = await asyncio.wait_for(
            pool.grade([score_item(str(i), "#9", "9", EXACT) for i in range(200)], 10.0), 60.0
        )
        assert [result.item_id for result in results] == [str(i) for i in range(200)]
        assert all(result.components[0].raw == 1.0 for result in results)
        assert pool.counters.num_recycled >= 18
        await settle(lambda: pool.num_workers == 2)
        assert not pids & set(pool.worker_pids)
        await pool.close()
        assert not any(is_running(pid) for pid in pids)


async def test_a_fresh_item_gets_a_worker_of_its_own() -> None:
    async with running_pool() as pool:
        (pid,) = pool.worker_pids
        results = await pool.grade([score_item(str(i), "#9", "9", EXACT) for i in range(4)], 10.0, fresh=True)
        assert all(result.components[0].raw == 1.0 for result in results)
        assert pool.worker_pids[0] == pid
        await settle(lambda: len(pool.worker_pids) == 1)


async def test_a_caller_that_goes_away_leaves_no_work_behind() -> None:
    async with running_pool() as pool:
        abandoned = asyncio.create_task(pool.grade([score_item(str(i), ENDLESS, "1") for i in range(50)], DEADLINE_S))
        await asyncio.sleep(0.2)
        abandoned.cancel()
        (result,) = await asyncio.wait_for(pool.grade([score_item("a", "#9", "9", EXACT)], 10.0), DEADLINE_S / 2)
        assert result.components[0].raw == 1.0
        assert pool.counters.num_killed == 1


async def test_a_full_queue_is_refused_with_a_delay() -> None:
    async with running_pool(max_queued=10) as pool:
        with pytest.raises(OverloadError) as caught:
            await pool.grade([score_item(str(i), "#9", "9", EXACT) for i in range(11)], 10.0)
        assert caught.value.retry_after_s > 0


async def test_a_worker_killed_under_the_reward_service_costs_nothing() -> None:
    options = {"workers": "1", "scorers": "math_answer", "regrade_share": "1.0"}
    below = await executor.start(spec_of("executor", options))
    above = await reward.start(spec_of("reward", options, below.address))
    client = Client(Endpoint(above.address, TOKEN), reward_pb2_grpc.RewardServiceStub)
    (pid,) = below.pool.worker_pids
    os.kill(pid, signal.SIGSTOP)  # so that the item is certainly in its hands
    request = reward_pb2.ScoreRequest(items=[score_item("a", r"\boxed{2}", "2")], deadline_seconds=DEADLINE_S)
    scoring = asyncio.create_task(client.call(client.stub.Score, request, timeout_s=60.0))
    await asyncio.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    (result,) = (await scoring).results
    assert result.components[0].verdict == common_pb2.VERDICT_CORRECT
    assert below.pool.counters.num_lost == 1
    await above.stop(10.0)
    status = below.pool.counters
    await client.close()
    await below.stop(5.0)
    assert status.num_answered == 3  # the probe, the second attempt and the second grading


async def test_an_executor_that_is_killed_and_restarted(tmp_path: Path) -> None:
    options = {"workers": "1", "scorers": "exact_match", "attempts": "1"}
    process, address = launch("executor", spec_of("executor", options), tmp_path / "first")
    above = await reward.start(spec_of("reward", options, address))
    client = Client(Endpoint(above.address, TOKEN), reward_pb2_grpc.RewardServiceStub)
    request = reward_pb2.ScoreRequest(items=[score_item("a", "#9", "9", EXACT)])
    assert (await client.call(client.stub.Score, request, timeout_s=30.0)).results[0].components[0].raw == 1.0
    process.kill()
    process.wait(10)
    with pytest.raises(CrescendoError) as caught:
        await client.call(client.stub.Score, request, timeout_s=5.0)
    assert caught.value.retryable
    restarted = {**options, "port": address.rpartition(":")[2]}
    process, _ = await asyncio.to_thread(launch, "executor", spec_of("executor", restarted), tmp_path / "second")
    response = await client.call(client.stub.Score, request, timeout_s=60.0, attempts=30)
    assert response.results[0].components[0].raw == 1.0
    await client.close()
    await above.stop(5.0)
    process.terminate()
    assert await asyncio.to_thread(process.wait, 20) == 0


async def test_nothing_is_left_after_close() -> None:
    async with running_pool(num_workers=2) as pool:
        grading = asyncio.create_task(pool.grade([score_item(str(i), ENDLESS, "1") for i in range(3)], DEADLINE_S))
        await asyncio.sleep(0.2)
        pids = [pool.zygote_pid, *pool.worker_pids]
        await pool.close()
        results = await asyncio.wait_for(grading, 5.0)
        assert all(result.fault.retryable for result in results)
        wait_until(lambda: not any(is_running(pid) for pid in pids), 5.0)
