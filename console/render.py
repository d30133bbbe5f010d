"""Turns what a run says into HTML. Pure: no I/O but the templates, read once.

Model output is hostile: every value is escaped by Jinja, control characters are made visible, and nothing
from a run reaches a script, a style or an attribute that loads something.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from crescendo import __version__
from crescendo.console.timeline import timeline
from crescendo.proto.v1 import common_pb2, controller_pb2

PARTS = ("head", "numbers", "stages", "recent", "timeline", "workers", "samples", "events")
ENDED_PHASES = ("done", "stopped", "failed")
RECENT_ROWS = 10
SHOWN_EVENTS = 20
MAX_TEXT = 4000
CHART_FIELDS = ("iteration", "reward", "length", "accuracy", "validation_accuracy", "clip_ratio")
CHARTS = (
    ("reward", "Reward", "mean of the trained responses"),
    ("accuracy", "Accuracy", "line: held-out prompts; dots: trained responses"),
    ("length", "Response length", "tokens, mean"),
    ("clip", "Clipped responses", "share cut by the context limit"),
)
_VERDICTS = {
    common_pb2.VERDICT_CORRECT: ("correct", "good"),
    common_pb2.VERDICT_WRONG: ("wrong", "bad"),
    common_pb2.VERDICT_UNPARSABLE: ("unparsable", "bad"),
    common_pb2.VERDICT_TIMEOUT: ("timeout", "odd"),
    common_pb2.VERDICT_SANDBOX_ERROR: ("sandbox error", "odd"),
    common_pb2.VERDICT_UNSUPPORTED: ("unsupported", "odd"),
    common_pb2.VERDICT_SKIPPED: ("skipped", "odd"),
}
_CONTROL = {code: 0xFFFD for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass(frozen=True)
class Look:
    """What the page shows at one moment. events: oldest first; samples: newest first."""

    status: controller_pb2.RunStatus
    rows: Sequence[controller_pb2.MetricsRow]
    events: Sequence[controller_pb2.Event]
    samples: Sequence[controller_pb2.Sample]

    @property
    def is_going_on(self) -> bool:
        """Whether a controller works on the run."""
        return self.status.phase not in ENDED_PHASES


class Renderer:
    """The templates. One for the life of the application. placeholder_ids: of empty elements on the page."""

    def __init__(self, placeholder_ids: Sequence[str] = ()) -> None:
        self._placeholder_ids = placeholder_ids
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(duration=duration, visible=visible, verdict=verdict, clock=clock, gib=gib)

    def page(self, look: Look) -> str:
        """The whole page."""
        return self._templates.get_template("page.html").render(
            parts=self.parts(look),
            name=look.status.name,
            version=__version__,
            charts=CHARTS,
            placeholder_ids=self._placeholder_ids,
        )

    def parts(self, look: Look) -> dict[str, str]:
        """The page's parts by name; the stream sends those that changed."""
        context = {
            "status": look.status,
            "going_on": look.is_going_on,
            "numbers": numbers(look),
            "rows": [row for row in look.rows if "iteration" in row.values][-RECENT_ROWS:][::-1],
            "timeline": timeline(look.status.timeline),
            "samples": look.samples,
            "events": list(look.events)[-SHOWN_EVENTS:][::-1],
            "next_stage": next_stage(look.status),
        }
        return {name: self._templates.get_template(f"{name}.html").render(context) for name in PARTS}


def numbers(look: Look) -> list[tuple[str, str, str]]:
    """The key figures: label, value, unit."""
    metrics, status = look.status.metrics, look.status
    validated = [row.values["validation_accuracy"] for row in look.rows if "validation_accuracy" in row.values]
    found = []
    if validated:
        found.append(("held-out accuracy", f"{100 * validated[-1]:.1f}", "%"))
    for key, label, form, unit in (
        ("reward", "reward", "{:.3f}", ""),
        ("length", "response length", "{:.0f}", "tokens"),
    ):
        if key in metrics:
            found.append((label, form.format(metrics[key]), unit))
    if "clip_ratio" in metrics:
        found.append(("clipped", f"{100 * metrics['clip_ratio']:.1f}", "%"))
    if "sft_loss" in metrics:
        found.append(("supervised loss", f"{metrics['sft_loss']:.3f}", ""))
    if look.is_going_on and status.tokens_per_second > 0:
        found.append(("throughput", rate(status.tokens_per_second), "tokens/s"))
    if status.weight_version:
        found.append(("weight version", str(status.weight_version), ""))
    if status.committed_iteration >= 0:
        found.append(("committed", str(status.committed_iteration), "iteration"))
    return found


def next_stage(status: controller_pb2.RunStatus) -> str:
    """The stage that a promotion would enter; empty in the last."""
    names = [stage.name for stage in status.stages]
    active = next((number for number, stage in enumerate(status.stages) if stage.state == "active"), None)
    return names[active + 1] if active is not None and active + 1 < len(names) else ""


def chart_rows(rows: Sequence[controller_pb2.MetricsRow]) -> list[dict[str, Any]]:
    """What the charts draw, with each row's stage."""
    return [
        {"stage": row.stage, **{field: row.values[field] for field in CHART_FIELDS if field in row.values}}
        for row in rows
        if "iteration" in row.values
    ]


def rate(per_second: float) -> str:
    """11.8k, or 870."""
    return f"{per_second / 1000:.1f}k" if per_second >= 1000 else f"{per_second:.0f}"


def duration(seconds: float) -> str:
    """4:05, or 1:04:05."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def clock(unix_seconds: float) -> str:
    """A time in UTC as HTML's time element wants it."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def gib(num_bytes: int) -> str:
    """Bytes in GiB."""
    return f"{num_bytes / (1 << 30):.2f}"


def visible(text: str) -> str:
    """Model text for people: bounded, control characters shown as replacement marks."""
    shown = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2]}\n[...]\n{text[-MAX_TEXT // 2 :]}"
    return shown.translate(_CONTROL)


def verdict(component: common_pb2.RewardComponent) -> tuple[str, str]:
    """A verdict's word and its class; empty for scorers that give none."""
    return _VERDICTS.get(component.verdict, ("", ""))
