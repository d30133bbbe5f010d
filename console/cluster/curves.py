"""Curves of a run as SVG, drawn on the server: no script, and a table beside them. Pure.

Rows beyond what a curve can show are averaged in buckets of equal width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from crescendo.console.render import CHARTS
from crescendo.proto.v1 import controller_pb2

WIDTH: Final = 480.0
HEIGHT: Final = 200.0
LEFT: Final = 44.0
RIGHT: Final = 12.0
TOP: Final = 18.0
BOTTOM: Final = 24.0
MAX_POINTS: Final = 240
MAX_DOTS: Final = 40
NUM_TICKS: Final = 4
_FIELDS: Final = {
    "reward": ("reward",), "accuracy": ("accuracy", "validation_accuracy"),
    "length": ("length",), "clip": ("clip_ratio",),
}  # fmt: skip
_SHARES: Final = ("accuracy", "clip")
_FROM_ZERO: Final = (*_SHARES, "length")
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """points: as SVG's polyline takes them; dots: places to mark; faint: dots alone, of the trained responses."""

    points: str
    dots: tuple[Point, ...]
    faint: bool


@dataclass(frozen=True)
class Curve:
    """One chart. ticks: place and label; changes: place and name of each stage; last: the newest value."""

    key: str
    title: str
    note: str
    lines: tuple[Line, ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    changes: tuple[tuple[float, str], ...]
    last: str


def curves(rows: Sequence[controller_pb2.MetricsRow]) -> list[Curve]:
    """A chart for each measure that the rows have; none before the first iteration has ended."""
    known = present_branch([row for row in rows if row.values["iteration"] >= 1])
    found = []
    for key, title, note in CHARTS:
        series = [[(row.values["iteration"], row.values[name]) for row in known if name in row.values]
                  for name in _FIELDS[key]]  # fmt: skip
        if any(series):
            found.append(_curve(key, title, note, series, known))
    return found


def present_branch(rows: Sequence[controller_pb2.MetricsRow]) -> list[controller_pb2.MetricsRow]:
    """Without what a rollback gave up: rows of later iterations that stand before a row of an earlier one."""
    found: list[controller_pb2.MetricsRow] = []
    for row in rows:
        while found and found[-1].values["iteration"] > row.values["iteration"]:
            found.pop()
        found.append(row)
    return found


def _curve(key: str, title: str, note: str, series: list[list[Point]], rows: list[controller_pb2.MetricsRow]) -> Curve:
    first, last = rows[0].values["iteration"], max(rows[-1].values["iteration"], rows[0].values["iteration"] + 1)
    values = [value for points in series for _, value in points]
    low, high, ticks = _scale(min(0.0, *values) if key in _FROM_ZERO else min(values), max(values))

    def at(point: Point) -> Point:
        x = LEFT + (point[0] - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    def line(points: list[Point], number: int) -> Line:
        places = [at(point) for point in thinned(points)]
        faint = len(series) > 1 and number == 0
        text = " ".join(f"{x},{y}" for x, y in places)
        return Line(text, tuple(places) if faint or len(places) <= MAX_DOTS else (), faint)

    newest = next(points[-1][1] for points in reversed(series) if points)
    return Curve(
        key, title, note,
        lines=tuple(line(points, number) for number, points in enumerate(series) if points),
        y_ticks=tuple((at((first, tick))[1], _label(key, tick)) for tick in ticks),
        x_ticks=tuple((at((tick, low))[0], f"{tick:.0f}") for tick in _whole_ticks(first, last)),
        changes=tuple((at((iteration, low))[0], name) for iteration, name in _stages(rows)),
        last=_label(key, newest, exact=True),
    )  # fmt: skip


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MAX_POINTS points: means of runs of neighbours, in order."""
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round bounds around the values, and ticks between them."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * max(1.0, abs(low)) * (low != 0), high + 0.5 * max(1.0, abs(high))
    step = _step((high - low) / NUM_TICKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    return first * step, last * step, [number * step for number in range(first, last + 1)]


def _whole_ticks(first: float, last: float) -> list[float]:
    step = max(1.0, _step((last - first) / NUM_TICKS))
    return [number * step for number in range(math.ceil(first / step), math.floor(last / step) + 1)]


def _step(wanted: float) -> float:
    """1, 2 or 5 times a power of ten, at least as wide as wanted."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= wanted * (1 - 1e-9))


def _stages(rows: Sequence[controller_pb2.MetricsRow]) -> list[tuple[float, str]]:
    found: list[tuple[float, str]] = []
    for row in rows:
        if row.stage != "end" and (not found or found[-1][1] != row.stage):  # the last validation is no stage
            found.append((row.values["iteration"], row.stage))
    return found


def _label(key: str, value: float, *, exact: bool = False) -> str:
    if key in _SHARES:
        return f"{100 * value:.1f} %" if exact else f"{100 * value:.3g} %"
    if key == "length":
        return f"{value:,.0f}"
    return f"{value:.3f}" if exact else f"{value:.4g}"
