"""The final table: what each stage reached and how it was left, from a run's summary."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

# Phases whose time people ask for; the others are summed up.
_PHASES = ("start", "sft", "rollout", "score", "switch", "train", "publish", "validate", "commit", "export")


def render_summary(summary: Mapping[str, Any]) -> RenderableType:
    """The summary (see summary.py) for a terminal: result, stages, time, checks."""
    accuracy = summary["accuracy"]
    headline = Text.assemble(
        (str(summary["name"]), "bold"), ": accuracy ", (_share(accuracy["sft"]), "bold"), " before RL, ",
        (_share(accuracy["final"]), "bold green"), " after", _gain(accuracy),
    )  # fmt: skip
    return Group(headline, Text(), _stages(summary), Text(), _facts(summary))


def _stages(summary: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage")
    table.add_column("iterations", justify="right")
    table.add_column("left by")
    table.add_column("accuracy in its context", justify="right")
    for stage in summary["stages"]:
        span = _span(int(stage["entered_iteration"]), int(stage.get("left_iteration", -1)))
        table.add_row(str(stage["name"]), span, str(stage.get("left_by") or "-"), _share(stage["accuracy"]))
    return table


def _span(entered: int, left: int) -> str:
    if entered < 0:
        return "not entered"
    return f"{entered} to {left}" if left >= entered else f"from {entered}"


def _facts(summary: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    seconds: Mapping[str, float] = summary["seconds"]
    shown = [f"{name} {seconds[name]:.0f} s" for name in _PHASES if seconds.get(name, 0.0) >= 0.5]
    table.add_row("time", ", ".join(shown) or "-")
    checks: Mapping[str, float] = summary["checks"]
    table.add_row("checks", ", ".join(f"{name} {value:.2g}" for name, value in checks.items()) or "-")
    if summary.get("trained_tokens"):
        table.add_row("trained", f"{summary['trained_tokens']:,} tokens in {summary['iterations']} iterations")
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _gain(accuracy: Mapping[str, float | None]) -> str:
    before, after = accuracy["sft"], accuracy["final"]
    return "" if before is None or after is None else f" ({100 * (after - before):+.0f} points)"
