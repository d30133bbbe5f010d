"""The phase time line: newest spans laid out as boxes of an SVG, and the share of time by phase. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from crescendo.proto.v1 import controller_pb2

WIDTH = 1000.0  # units of the drawing; the page scales it
SHOWN_ITERATIONS = 8
KNOWN_PHASES = ("rollout", "score", "switch", "train", "publish", "validate", "commit", "sft", "start", "sample")


@dataclass(frozen=True)
class Box:
    """A span as drawn. kind: a phase that the style sheet knows, or other."""

    x: float
    width: float
    kind: str
    label: str


@dataclass(frozen=True)
class Share:
    """A phase's share of the drawn time, in percent."""

    phase: str
    kind: str
    seconds: float
    percent: float


@dataclass(frozen=True)
class Timeline:
    """boxes: in time order; ticks: position and iteration; shares: largest first; seconds: drawn time."""

    boxes: tuple[Box, ...]
    ticks: tuple[tuple[float, int], ...]
    shares: tuple[Share, ...]
    seconds: float


def timeline(spans: Sequence[controller_pb2.PhaseSpan]) -> Timeline:
    """Lays out the spans of the newest iterations; spans before the first iteration while there is none."""
    newest = max((span.iteration for span in spans), default=0)
    shown = [span for span in spans if not newest or span.iteration > max(0, newest - SHOWN_ITERATIONS)]
    if not shown:
        return Timeline((), (), (), 0.0)
    begin = min(span.start_seconds for span in shown)
    total = max(span.end_seconds for span in shown) - begin
    boxes: list[Box] = []
    ticks: list[tuple[float, int]] = []
    seconds: dict[str, float] = {}
    for span in shown:
        length = span.end_seconds - span.start_seconds
        x = _drawn(span.start_seconds - begin, total)
        label = (
            f"{span.phase}, iteration {span.iteration}: {length:.2f} s" if newest else f"{span.phase}: {length:.1f} s"
        )
        boxes.append(Box(round(x, 2), round(max(0.5, _drawn(length, total)), 2), kind_of(span.phase), label))
        seconds[span.phase] = seconds.get(span.phase, 0.0) + length
        if newest and (not ticks or ticks[-1][1] != span.iteration):
            ticks.append((round(x, 2), span.iteration))
    shares = [
        Share(phase, kind_of(phase), spent, 100 * spent / total if total > 0 else 0.0)
        for phase, spent in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    return Timeline(tuple(boxes), tuple(ticks), tuple(shares), total)


def _drawn(seconds: float, total: float) -> float:
    """Units of the drawing; divides first, so that the shortest of totals overflows nothing."""
    return WIDTH * (seconds / total) if total > 0 else 0.0


def kind_of(phase: str) -> str:
    """The phase, if the style sheet has a colour for it."""
    return phase if phase in KNOWN_PHASES else "other"
