"""What benchmarks share: taking turns, medians, a description of the machine, the one line of JSON.

Absolute figures depend on the machine and on what else it does; ratios of two sides that took turns in one run do much
less. So a benchmark calls `take_turns` with both sides and reports `Measured`.
"""

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One figure: ours and the baseline in the same unit; ratio is ours over the baseline."""

    name: str
    ours: float
    baseline: float
    unit: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Ours over the baseline; above 1 is better when the unit is a rate."""
        return self.ours / self.baseline

    def line(self) -> str:
        """The JSON line."""
        return json.dumps(
            {
                "name": self.name,
                "ours": rounded(self.ours),
                "baseline": rounded(self.baseline),
                "ratio": rounded(self.ratio),
                "unit": self.unit,
                "details": dict(self.details),
                "machine": machine(),
            }
        )


def report(measured: Measured) -> None:
    """Prints the line, alone on standard output."""
    print(measured.line(), flush=True)


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Calls each side once a round, order reversed every other round; returns what they gave after the warm-up."""
    names = list(sides)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        for name in names if number % 2 == 0 else reversed(names):
            value = sides[name]()
            if number >= warmup:
                found[name].append(value)
    return found


def median(values: Sequence[float]) -> float:
    """The median; raises StatisticsError when there is none."""
    return float(statistics.median(values))


def rounded(value: float, digits: int = 4) -> float:
    """To significant digits, for people to read."""
    return float(f"{value:.{digits}g}")


def progress(text: str) -> None:
    """Says on standard error how far a long benchmark is."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What the figures were measured on; load is of the last minute, so that noise shows."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
