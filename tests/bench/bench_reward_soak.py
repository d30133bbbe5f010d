"""1,000 concurrent requests from 50 clients, with kills among them, and 10,000 fuzzed requests.

`make bench BENCH=reward_soak` prints one JSON line. The figure is the rate of the rounds without kills against the same
items in large requests from one client, in the same run; what counts more is in `details`, which must be: lost 0,
orphans 0, growth of memory about 0, untyped errors none. Exit code 1 when they are not.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from crescendo.proto.v1 import reward_pb2
from tests.bench.harness import Measured, median, progress, report, rounded
from tests.bench.reward_fuzz import Fuzzed, fuzz, noise
from tests.bench.reward_soak import REQUEST_S, TOKEN, Outcome, Plan, Soak, make_items, open_clients, start

MAX_GROWTH_MIB = 40.0
BASELINE_ITEMS = 500


async def one_client(address: str, num_items: int) -> float:
    """Items per second of one client that sends large requests, one after the other."""
    (client,) = open_clients([address])
    started_s = time.perf_counter()
    for number in range(num_items // BASELINE_ITEMS):
        items, _ = make_items(number, BASELINE_ITEMS)
        await client.call(client.stub.Score, reward_pb2.ScoreRequest(items=items), timeout_s=REQUEST_S)
    seconds = time.perf_counter() - started_s
    await client.close()
    return num_items // BASELINE_ITEMS * BASELINE_ITEMS / seconds


def run_fuzz(folder: Path, count: int) -> tuple[Fuzzed, bool, float]:
    """What the fuzzed service said, whether it graded and ended well afterwards, and one client's rate on it."""
    options = {"workers": "1", "scorers": "exact_match,math_answer"}
    executor = start("executor", "fuzz-executor", folder, options)
    reward = start("reward", "fuzz-reward", folder, options, executor.address)
    try:
        baseline = asyncio.run(one_client(reward.address, 4_000))
        found = asyncio.run(fuzz(reward.address, executor.address, TOKEN, count, seed=1))
        noise([reward.address, executor.address], 100, seed=2)
        still_works = asyncio.run(one_client(reward.address, BASELINE_ITEMS)) > 0
    finally:
        codes = []
        for service in (reward, executor):
            service.process.terminate()
            codes.append(service.process.wait(60))
    return found, still_works and codes == [0, 0], baseline


def details_of(outcome: Outcome, fuzzed: Fuzzed, stays_up: bool) -> dict[str, object]:
    """What must hold, and what happened."""
    return {
        "requests": outcome.num_requests,
        "items": outcome.num_items,
        "lost": outcome.num_lost,
        "retries": outcome.num_retries,
        "orphans": outcome.num_orphans,
        "resident_mib": [rounded(value) for value in outcome.resident_mib],
        "growth_mib": rounded(outcome.growth_mib),
        "fuzzed": fuzzed.num_requests,
        "fuzzed_answered": fuzzed.num_answered,
        "fuzzed_errors": dict(fuzzed.errors.most_common()),
        "untyped": fuzzed.untyped[:5],
        "stays_up": stays_up,
    }


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=20, help="of each client, all at once")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--fuzzed", type=int, default=10_000)
    arguments = parser.parse_args()
    plan = Plan(num_clients=arguments.clients, requests_per_client=arguments.requests, rounds=arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        progress(f"{arguments.rounds} rounds of {arguments.clients * arguments.requests} requests")
        outcome = Soak(plan, Path(folder)).run()
        progress(f"{arguments.fuzzed} fuzzed requests")
        fuzzed, stays_up, baseline = run_fuzz(Path(folder), arguments.fuzzed)
    details = details_of(outcome, fuzzed, stays_up)
    report(Measured("reward_soak", median(outcome.rates), baseline, "items/s", details))
    is_good = not (outcome.num_lost or outcome.num_orphans or fuzzed.untyped) and stays_up
    return 0 if is_good and outcome.growth_mib < MAX_GROWTH_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
