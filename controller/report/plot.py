"""The picture of a run: accuracy, reward and length over iterations, with the stages that they went through.

Drawn once, at the end; matplotlib without a display and without global state.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from crescendo.proto.v1 import controller_pb2

_INK, _MUTED, _RULE = "#22262b", "#6b7280", "#d7dbe0"
_ACCURACY, _REWARD, _LENGTH, _CLIP = "#0f766e", "#4338ca", "#b45309", "#9ca3af"
_BANDS = ("#f4f6f8", "#ffffff")
# Rows that are no iterations: the validations before the first and after the last.
_OUTSIDE = ("start", "end")

Points = list[tuple[float, float]]


def plot_run(
    name: str, rows: Sequence[controller_pb2.MetricsRow], stages: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Draws the run's metrics to a PNG.

    stages: the summary's, with name, entered_iteration, left_by; a stage that was not entered has -1.
    """
    figure = Figure(figsize=(9, 8.2), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(1.25, 1, 1))
    inside = [row for row in rows if row.stage not in _OUTSIDE]
    _draw_accuracy(top, rows, inside)
    _draw_smoothed(middle, inside, "reward", _REWARD)
    _draw_smoothed(bottom, inside, "length", _LENGTH)
    _draw_clip_ratio(bottom, inside)
    last = max((row.values.get("iteration", 0.0) for row in inside), default=1.0)
    for axes, label in ((top, "validation accuracy"), (middle, "reward"), (bottom, "response length (tokens)")):
        _style(axes, label)
        _draw_stages(axes, stages, last)
    _name_stages(top, stages, last)
    top.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bottom.set_xlabel("iteration", color=_MUTED)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.set_xlim(0.0, last + 0.5)
    figure.suptitle(_title(name, rows), x=0.01, ha="left", fontsize=13, fontweight="bold", color=_INK)
    figure.savefig(path, facecolor="white")


def _title(name: str, rows: Sequence[controller_pb2.MetricsRow]) -> str:
    ends = [row.values["validation_accuracy"] for row in rows if row.stage in _OUTSIDE]
    return f"{name}: validation accuracy {ends[0]:.0%} to {ends[-1]:.0%}" if len(ends) > 1 else name


def _draw_accuracy(
    axes: Axes, rows: Sequence[controller_pb2.MetricsRow], inside: Sequence[controller_pb2.MetricsRow]
) -> None:
    validated = [row for row in inside if "validation_accuracy" in row.values]
    stages = list(dict.fromkeys(row.stage for row in validated))
    for number, stage in enumerate(stages):
        # The context differs between stages, so the curve breaks there.
        points = _points([row for row in validated if row.stage == stage], "validation_accuracy")
        label = "within the stage's context" if number == 0 else ""
        axes.plot(*_columns(points), color=_ACCURACY, linewidth=2, marker="o", markersize=4, label=label)
    outside = _points([row for row in rows if row.stage in _OUTSIDE], "validation_accuracy")
    if outside:
        axes.plot(
            *_columns(outside), linestyle="none", marker="D", markersize=7, color=_ACCURACY, markerfacecolor="white",
            markeredgewidth=1.8, label="within the last stage's context, before and after RL", zorder=4, clip_on=False,
        )  # fmt: skip
        for iteration, value in outside:
            side = "left" if iteration == outside[0][0] else "right"
            offset = (9, 0) if side == "left" else (-9, 8)
            axes.annotate(
                f"{value:.0%}", (iteration, value), offset, textcoords="offset points", ha=side, va="center",
                fontsize=9, fontweight="bold", color=_INK,
            )  # fmt: skip
    axes.set_ylim(0.0, 1.02)
    if validated or outside:
        axes.legend(loc="upper left", edgecolor="none", framealpha=0.9, fontsize=8, labelcolor=_MUTED)


def _draw_clip_ratio(axes: Axes, inside: Sequence[controller_pb2.MetricsRow]) -> None:
    points = _points(inside, "clip_ratio")
    if not points:
        return
    second = axes.twinx()
    second.plot(*_columns(points), color=_CLIP, linewidth=1.2, linestyle="--")
    second.set_ylim(0.0, 1.0)
    second.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    second.set_ylabel("cut by the context limit", color=_MUTED, fontsize=9)
    second.tick_params(colors=_MUTED, labelsize=8, length=0)
    for spine in second.spines.values():
        spine.set_visible(False)


def _draw_smoothed(axes: Axes, inside: Sequence[controller_pb2.MetricsRow], name: str, colour: str) -> None:
    """Each iteration's value, pale, and over it a moving average that starts anew with each stage, as the gates' do."""
    for stage in dict.fromkeys(row.stage for row in inside):
        points = _points([row for row in inside if row.stage == stage], name)
        steps, values = _columns(points)
        axes.plot(steps, values, color=colour, linewidth=1.0, alpha=0.35)
        axes.plot(steps, _moving_average(values), color=colour, linewidth=2.0)
    axes.set_ylim(bottom=min([0.0, *(value for _, value in _points(inside, name))]))


def _moving_average(values: list[float], weight: float = 0.3) -> list[float]:
    averaged: list[float] = []
    for value in values:
        averaged.append(value if not averaged else averaged[-1] + weight * (value - averaged[-1]))
    return averaged


def _style(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, color=_INK, fontsize=10)
    axes.tick_params(colors=_MUTED, labelsize=8, length=0)
    axes.grid(axis="y", color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_RULE)


def _spans(stages: Sequence[Mapping[str, Any]], last: float) -> list[tuple[str, str, float, float]]:
    """name, left_by, first and last x of the stages that were entered."""
    entered = [stage for stage in stages if int(stage["entered_iteration"]) >= 0]
    starts = [max(0.0, float(stage["entered_iteration"]) - 0.5) for stage in entered]
    ends = [*starts[1:], last + 0.5][: len(starts)]
    return [
        (str(stage["name"]), str(stage.get("left_by") or ""), start, end)
        for stage, start, end in zip(entered, starts, ends, strict=True)
    ]


def _draw_stages(axes: Axes, stages: Sequence[Mapping[str, Any]], last: float) -> None:
    for number, (_, _, start, end) in enumerate(_spans(stages, last)):
        axes.axvspan(start, end, color=_BANDS[number % 2], zorder=0, linewidth=0)
        if number:
            axes.axvline(start, color=_MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)


def _name_stages(axes: Axes, stages: Sequence[Mapping[str, Any]], last: float) -> None:
    for name, left_by, start, end in _spans(stages, last):
        text = f"{name}\nleft by {left_by}" if left_by else name
        axes.text(
            (start + end) / 2, 1.03, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom",
            fontsize=8.5, color=_INK, linespacing=1.3,
        )  # fmt: skip


def _points(rows: Sequence[controller_pb2.MetricsRow], name: str) -> Points:
    return [(row.values.get("iteration", 0.0), row.values[name]) for row in rows if name in row.values]


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]
