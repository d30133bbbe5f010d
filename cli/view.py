"""How a run's status looks in a terminal: a live view, and one line a change where there is no terminal."""

import json
import time

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from crescendo.common.runfolder import RunFolder
from crescendo.proto.v1 import controller_pb2

SHOWN_METRICS = (
    ("reward", "reward", "{:.3f}"),
    ("length", "length", "{:.1f} tokens"),
    ("accuracy", "accuracy", "{:.1%}"),
    ("validation_accuracy", "validation", "{:.1%}"),
    ("clip_ratio", "clipped", "{:.1%}"),
    ("sft_loss", "loss", "{:.3f}"),
)
_MARKS = {"done": ("●", "green"), "active": ("●", "bold cyan"), "waiting": ("○", "dim")}
_ENDINGS = {"done": "green", "stopped": "yellow", "failed": "red"}


def seconds_text(seconds: float) -> str:
    """4:05, or 1:04:05; a dash when negative."""
    if seconds < 0:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rate_text(tokens_per_second: float) -> str:
    """12.4k tokens/s."""
    if tokens_per_second >= 1000:
        return f"{tokens_per_second / 1000:.1f}k tokens/s"
    return f"{tokens_per_second:.0f} tokens/s"


def metrics_text(status: controller_pb2.RunStatus) -> list[tuple[str, str]]:
    """Names and values of the newest metrics that people follow."""
    return [(label, form.format(status.metrics[key])) for key, label, form in SHOWN_METRICS if key in status.metrics]


def _position(status: controller_pb2.RunStatus) -> str:
    if status.step == "sft" or status.iteration <= 0:
        return status.step
    limit = f"/{status.max_iterations}" if status.max_iterations else ""
    return f"{status.step} iteration {status.iteration}{limit}"


def status_view(status: controller_pb2.RunStatus) -> RenderableType:
    """The live view: position, stage track, phase with progress, metrics, the gate's numbers, the last event."""
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    times = Text.assemble(("elapsed ", "dim"), seconds_text(status.elapsed_seconds))
    if status.eta_seconds > 0:
        times.append_text(Text.assemble(("   left ", "dim"), f"about {seconds_text(status.eta_seconds)}"))
    head.add_row(Text.assemble((status.name, "bold"), "   ", _position(status)), times)
    rows: list[RenderableType] = [head]
    if status.stages:
        rows.append(_track(status))
    rows.append(_phase(status))
    numbers = metrics_text(status)
    if numbers:
        pieces = [piece for label, value in numbers for piece in ((f"{label} ", "dim"), f"{value}   ")]
        rows.append(Text.assemble(*pieces))
    active = next((stage for stage in status.stages if stage.state == "active"), None)
    if active is not None and active.gate_report:
        rows.append(Text.assemble(("gate ", "dim"), active.gate, " ", (active.gate_report, "dim")))
    if status.message:
        rows.append(Text(status.message, style="dim", overflow="ellipsis", no_wrap=True))
    return Panel(Group(*rows), border_style="red" if status.failure else "dim", padding=(0, 1))


def _track(status: controller_pb2.RunStatus) -> Text:
    track = Text()
    for number, stage in enumerate(status.stages):
        mark, style = _MARKS.get(stage.state, _MARKS["waiting"])
        track.append_text(Text(" ── ", style="dim") if number else Text())
        track.append(f"{mark} {stage.name}", style=style)
        track.append(f" {stage.max_response_tokens}", style="dim")
    return track


def _phase(status: controller_pb2.RunStatus) -> RenderableType:
    name = "paused" if status.paused else status.phase
    if name in _ENDINGS:
        return Text(name, style=_ENDINGS[name])
    line = Table.grid(padding=(0, 2))
    line.add_column(min_width=9)
    line.add_column(width=32)
    line.add_column()
    bar = ProgressBar(total=1.0, completed=min(1.0, status.phase_progress), width=32)
    rate = rate_text(status.tokens_per_second) if status.tokens_per_second > 0 else ""
    line.add_row(Text(name, style="yellow" if status.paused else "cyan"), bar, Text(rate))
    return line


class PlainLines:
    """Turns statuses into lines: one an iteration, a stage, a phase outside iterations, a tenth of SFT."""

    def __init__(self) -> None:
        self._seen: tuple[object, ...] = ()

    def lines(self, status: controller_pb2.RunStatus) -> list[str]:
        """What is new in a status, as lines."""
        inside = status.step == "rl" and status.phase not in ("start", "done", "stopped", "failed")
        phase = "" if inside else status.phase
        tenth = int(status.phase_progress * 10) if status.phase == "sft" else 0
        seen = (status.step, phase, status.iteration, status.stage, status.paused, tenth)
        if seen == self._seen:
            return []
        self._seen = seen
        return [self._line(status)]

    @staticmethod
    def _line(status: controller_pb2.RunStatus) -> str:
        parts = ["paused" if status.paused else status.phase, _position(status)]
        if status.stage and status.step == "rl":
            parts.append(f"stage {status.stage}")
        parts += [f"{label} {value}" for label, value in metrics_text(status)]
        if status.tokens_per_second > 0:
            parts.append(rate_text(status.tokens_per_second))
        if status.eta_seconds > 0:
            parts.append(f"left about {seconds_text(status.eta_seconds)}")
        known = dict.fromkeys(part for part in parts if part)  # step and phase may have one name
        return f"{seconds_text(status.elapsed_seconds):>8}  " + "  ".join(known)


def event_line(status: controller_pb2.RunStatus, event: controller_pb2.Event) -> str:
    """An event as a line of its own."""
    mark = "" if event.severity == "info" else f"{event.severity}: "
    return f"{seconds_text(status.elapsed_seconds):>8}  {mark}{event.message}"


def finished_panel(folder: RunFolder) -> RenderableType:
    """What a run without a living controller left: its summary, or how to go on."""
    if folder.summary.exists():
        from crescendo.controller.report.table import render_summary

        return Group(render_summary(json.loads(folder.summary.read_text())), *_products(folder))
    age_s = time.time() - folder.identity.stat().st_mtime
    return Panel(
        Text.assemble(
            (folder.root.name, "bold"),
            f"   not running; it was made {seconds_text(age_s)} ago and has not finished.\n",
            f"Continue it: crescendo resume {folder.root}\n",
            (f"Its log: {folder.logs / 'controller.log'}", "dim"),
        ),
        border_style="yellow",
        padding=(0, 1),
    )


def _products(folder: RunFolder) -> list[RenderableType]:
    """Where the run's plot and checkpoint are, and what to try next."""
    table = Table.grid(padding=(0, 2))
    for label, path in (
        ("plot", next(iter(sorted(folder.plots.glob("*.png"))), None)),
        ("checkpoint", folder.export if folder.export.exists() else None),
        ("logs", folder.logs),
    ):
        if path is not None:
            table.add_row(Text(label, style="dim"), Text(str(path)))
    table.add_row(Text("look again", style="dim"), Text(f"crescendo console {folder.root}"))
    return [Text(), table]
