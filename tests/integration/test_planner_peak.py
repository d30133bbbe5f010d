"""The planner's peak of real training steps on CPU, by the allocator's accounts: one rank, and layouts on two."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_step_takes_what_was_planned() -> None:
    """In a process of its own: the profiler and torch.distributed are one a process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_planner", "--quick"],
        cwd=ROOT, env={**os.environ, "GOMP_SPINCOUNT": "0"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.strip().splitlines()[-1])["details"]["rows"]
    assert {row["case"] for row in rows} == {"small", "PP2", "CP2 distributed"}
    assert all(0.85 < row["ratio"] < 1.15 for row in rows), rows
