"""Many clients, kills, and requests that nobody would send: nothing lost, nothing left over, typed errors only.

The full sizes are in `make bench BENCH=reward_soak`.
"""

import asyncio
from pathlib import Path

from tests.bench.reward_fuzz import fuzz, noise
from tests.bench.reward_soak import TOKEN, Plan, Soak, open_clients, send, start

NUM_FUZZED = 500


def test_clients_a_replica_and_an_executor_are_killed_and_no_item_is_lost(tmp_path: Path) -> None:
    plan = Plan(num_clients=10, requests_per_client=20, items_per_request=4, num_doomed_clients=1, rounds=3)
    outcome = Soak(plan, tmp_path).run()
    assert outcome.num_requests == 600
    assert outcome.num_lost == 0
    assert outcome.num_retries > 0  # the replica died while it had requests
    assert outcome.num_orphans == 0
    assert outcome.growth_mib < 50


def test_fuzzed_requests_meet_typed_errors_only(tmp_path: Path) -> None:
    options = {"workers": "1", "scorers": "exact_match,math_answer", "regrade_share": "0.2"}
    executor = start("executor", "executor-0", tmp_path, options)
    reward = start("reward", "reward-0", tmp_path, options, executor.address)
    try:
        found = asyncio.run(fuzz(reward.address, executor.address, TOKEN, NUM_FUZZED, seed=1))
        noise([reward.address, executor.address], 20, seed=2)
        assert found.untyped == []
        assert found.num_answered + found.errors.total() == NUM_FUZZED
        assert found.num_answered > NUM_FUZZED / 10
        assert found.errors["RequestError INVALID_ARGUMENT"] > NUM_FUZZED / 10
        assert asyncio.run(_still_grades(reward.address)) == 0
    finally:
        for service in (reward, executor):
            service.process.terminate()
            assert service.process.wait(60) == 0


async def _still_grades(address: str) -> int:
    (client,) = open_clients([address])
    lost, _ = await send([client], 5, 16, 0)
    await client.close()
    return lost
