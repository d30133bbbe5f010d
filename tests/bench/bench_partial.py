"""Partial rollouts against whole ones, on long-tail mixes of lengths: `make bench BENCH=partial`.

One run of the product (e2e_ours.py) alternates between a token budget and none, in blocks of iterations. Between two
blocks stand iterations that are not counted: after a switch to whole rollouts one, which ends what was parked; after a
switch to partial ones as many as the longest response takes. The figure is trained response tokens over the wall
seconds of whole iterations; the target is a ratio of 1.8. Two mixes are measured, because the gain grows with the
tail: heavy_tail, whose ratio stands in front, and the shorter long_tail of `e2e`. Prints one JSON line.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from tests.bench.bench_e2e import facts, rate
from tests.bench.e2e_ours import Turn, our_side
from tests.bench.e2e_plan import MIXES, make_plan
from tests.bench.harness import Measured, progress, report, rounded

TAILS = ("heavy_tail", "long_tail")


async def measure(mix: str, iterations: int, block: int, threads: int) -> dict[str, list[Turn]]:
    """Turns of both sides, by name."""
    budget = MIXES[mix].token_budget
    settling = {"whole": 1, "partial": -(-MIXES[mix].max_response_tokens // budget) + 1}
    budgets = {"whole": 0, "partial": budget}
    turns: dict[str, list[Turn]] = {"whole": [], "partial": []}
    plan = make_plan(mix, iterations)
    with tempfile.TemporaryDirectory(prefix="crescendo-bench-") as scratch:
        async with our_side(plan, Path(scratch), threads) as run:
            for done in range(0, iterations, block):
                for side, taken in turns.items():
                    run.stage.token_budget = budgets[side]
                    await run.take_turn(settling[side])
                    taken.append(await run.take_turn(min(block, iterations - done)))
                    progress(f"{mix}, {side}: {done + block} iterations, {rate(taken):.0f} trained tokens/s")
    return turns


def main() -> None:
    """Measures and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=21, help="counted iterations a side")
    parser.add_argument("--block", type=int, default=7, help="iterations a turn")
    parser.add_argument("--mix", choices=[*TAILS, "all"], default="all")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    mixes = TAILS if arguments.mix == "all" else (arguments.mix,)
    found = {mix: asyncio.run(measure(mix, arguments.iterations, arguments.block, arguments.threads)) for mix in mixes}
    details = {
        mix: {side: facts(taken) for side, taken in turns.items()}
        | {"ratio": rounded(rate(turns["partial"]) / rate(turns["whole"])), "token_budget": MIXES[mix].token_budget}
        for mix, turns in found.items()
    }
    first = found[mixes[0]]
    report(Measured("partial", rate(first["partial"]), rate(first["whole"]), "trained tokens/s", details))


if __name__ == "__main__":
    main()
