"""The memory planner against peaks measured on CPU: three model sizes, three lengths, two types.

Ours is what the planner says, the baseline what PyTorch's allocator accounts for a real training step. The figure is
the worst of all pairs: its ratio is furthest from 1. Goal: within 15 %. Run: make bench BENCH=planner
"""

import argparse
import os

from tests.bench import harness
from tests.bench.planner_peak import LENGTHS, SHAPES, compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest model, two lengths")
    arguments = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    sizes = {"small": SHAPES["small"]} if arguments.quick else dict(SHAPES)
    lengths = LENGTHS[:2] if arguments.quick else LENGTHS
    rows = []
    for dtype in ("float32", "bfloat16"):
        for row in compare(sizes, lengths, dtype):
            rows.append({**row, "dtype": dtype, "ratio": harness.rounded(row["ratio"])})
            harness.progress(str(rows[-1]))
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    details = {"goal": "within 15 % of the measured peak", "rows": rows}
    harness.report(harness.Measured("planner", worst["planned"], worst["measured"], "bytes", details))


if __name__ == "__main__":
    main()
