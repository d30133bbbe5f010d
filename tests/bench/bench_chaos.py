"""Fault campaigns: `make bench BENCH=chaos`, or with `ARGS="--seeds 0-3 --faults 20 --results chaos.jsonl"`.

By default 200 random faults over ten campaigns of the real engines on the tiny model, one after the other; it takes
hours on two cores. Each campaign is a seed. With --results each is kept as it ends, and one that is there is not run
again, so that the bench can be stopped and continued. Ours is 1 when every promise held in every campaign (tests in
controller/chaos/audit.py), else 0; the baseline is 1. Prints one JSON line.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.harness import Measured, progress, report
from tests.integration.chaos_job import run_campaign

RUN_LIMIT_S = 1800.0
SUMS = ("faults", "runs", "finished", "lost", "duplicated", "unattested", "silent_waits", "left_behind", "resumes")


def main() -> None:
    """Runs the seeds that have no result yet and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-9", help="a range, or one seed")
    parser.add_argument("--faults", type=int, default=20, help="faults a campaign")
    parser.add_argument("--within", default="8", help="longest wait from a recovery to the next fault, in seconds")
    parser.add_argument("--results", type=Path, help="JSON-lines file that keeps each campaign's result")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    known = read_results(options.results, options.faults)
    with tempfile.TemporaryDirectory(prefix="crescendo-chaos-") as scratch:
        for seed in range(int(first), int(last or first) + 1):
            if seed in known:
                continue
            began = time.perf_counter()
            code, result, said = run_campaign(
                Path(scratch), seed, options.faults, RUN_LIMIT_S, "--within", options.within
            )
            known[seed] = {"seed": seed, "asked": options.faults, "exit_code": code, **result}
            progress(f"seed {seed}: exit code {code} after {time.perf_counter() - began:.0f} s, {json.dumps(result)}")
            progress(said if code else "\n".join(line for line in said.splitlines() if line.startswith("|")))
            if options.results:
                with options.results.open("a") as file:
                    file.write(json.dumps(known[seed]) + "\n")
    found = [known[seed] for seed in sorted(known)]
    details: dict[str, Any] = {name: sum(int(one.get(name, 0)) for one in found) for name in SUMS}
    details["broken"] = [f"seed {one['seed']}: {what}" for one in found for what in one.get("broken", ["no result"])]
    held = float(bool(found) and all(one["exit_code"] == 0 and one.get("held") == 1 for one in found))
    report(Measured("chaos", held, 1.0, "promises held", {"held": int(held), "campaigns": len(found), **details}))


def read_results(path: Path | None, faults: int) -> dict[int, dict[str, Any]]:
    """Results by seed of campaigns with as many faults."""
    if path is None or not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["seed"]: row for row in rows if row["asked"] == faults}


if __name__ == "__main__":
    main()
