"""What the pages show of an RLJob, its pods and events. Pure.

Texts of a status and of events come from tenants in the end: Jinja escapes them, `plain` shows what is invisible.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from crescendo.console.cluster.actions import ENDED, stages
from crescendo.console.render import clock, visible

SHOWN_JOBS: Final = 200
SHOWN_EVENTS: Final = 50
SORTS: Final = ("newest", "name", "phase", "reward")
PHASES: Final = (
    "Pending", "Queued", "Starting", "Running", "Suspending", "Suspended", "Restarting", "Succeeded", "Failed",
)  # fmt: skip
_DIRECTIONS: Final = dict.fromkeys((0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
_COMPONENT: Final = "rl.crescendo.dev/component"
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A job in the list. position: 2/3, of the stages; age: 5m; when: the time of creation."""

    namespace: str
    name: str
    phase: str
    stage: str
    position: str
    iterations: str
    reward: str
    length: str
    gpus: str
    ready: str
    restarts: str
    eta: str
    mode: str
    queue: str
    age: str
    when: str
    reason: str
    message: str


@dataclass(frozen=True)
class PodRow:
    """A pod of a job. trouble: why it is not ready, where Kubernetes says it."""

    name: str
    role: str
    phase: str
    ready: bool
    restarts: int
    node: str
    age: str
    trouble: str


@dataclass(frozen=True)
class EventRow:
    """An event. what: its text; count: how often it came."""

    when: str
    age: str
    kind: str
    warning: bool
    what: str
    count: int


def row_of(job: Manifest, now: datetime) -> Row:
    """The list's line, and the head of the page."""
    metadata, spec, status = job["metadata"], job["spec"], job.get("status") or {}
    progress = status.get("progress") or {}
    names = [str(stage["name"]) for stage in stages(job)]
    stage = str(progress.get("stage", ""))
    return Row(
        namespace=str(metadata["namespace"]), name=str(metadata["name"]), phase=str(status.get("phase", "")),
        stage=stage, position=f"{names.index(stage) + 1}/{len(names)}" if stage in names else "",
        iterations=str(progress.get("summary", "")), reward=str(progress.get("reward", "")),
        length=str(progress.get("responseLength", "")), gpus=str(status.get("gpus", "")),
        ready=str(status.get("readySummary", "")), restarts=str(status.get("restarts", "")),
        eta="" if status.get("phase") in ENDED else str(progress.get("eta", "")),
        mode=str((spec.get("placement") or {}).get("mode", "")), queue=str((spec.get("queue") or {}).get("name", "")),
        age=ago(str(metadata.get("creationTimestamp", "")), now), when=str(metadata.get("creationTimestamp", "")),
        reason="" if status.get("reason") == status.get("phase") else str(status.get("reason", "")),
        message=str(status.get("message", "")),
    )  # fmt: skip


def listed(jobs: Iterable[Manifest], now: datetime, *, phase: str, text: str, sort: str) -> list[Row]:
    """The jobs that a person asked for: of a phase, with a text in "namespace/name"; sort: one of SORTS."""
    found = sorted(jobs, key=lambda job: str(job["metadata"].get("creationTimestamp", "")), reverse=True)
    rows = [row_of(job, now) for job in found]
    rows = [row for row in rows if phase in ("", row.phase) and text in f"{row.namespace}/{row.name}"]
    if sort == "name":
        rows.sort(key=lambda row: (row.namespace, row.name))
    elif sort == "phase":
        rows.sort(key=lambda row: PHASES.index(row.phase) if row.phase in PHASES else -1)
    elif sort == "reward":
        rows.sort(key=lambda row: _number(row.reward), reverse=True)
    return rows


def figures(job: Manifest, row: Row) -> list[tuple[str, str]]:
    """Key figures: label and value; what is not known is left out."""
    status = job.get("status") or {}
    progress, checkpoint = status.get("progress") or {}, status.get("checkpoint") or {}
    position = f"{row.stage} ({row.position})" if row.position else row.stage
    found = (
        ("Stage", position), ("Iteration", row.iterations), ("Reward", row.reward),
        ("Response length", row.length), ("Time left", row.eta), ("GPUs", row.gpus), ("Pods ready", row.ready),
        ("Restarts", row.restarts), ("Last commit", str(checkpoint.get("iteration", ""))),
        ("Weights", str(progress.get("weightVersion") or "")), ("Age", row.age), ("Mode", row.mode),
        ("Queue", row.queue), ("Lease", str(progress.get("leaseHolder", "")).lower()),
    )  # fmt: skip
    return [(label, value) for label, value in found if value]


def pod_rows(pods: Iterable[Manifest], now: datetime) -> list[PodRow]:
    """The pods, by role and name."""
    return sorted((_pod(pod, now) for pod in pods), key=lambda pod: (pod.role, pod.name))


def _pod(pod: Manifest, now: datetime) -> PodRow:
    metadata, status = pod["metadata"], pod.get("status") or {}
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    conditions = status.get("conditions") or ()
    is_ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
    waiting = [(one.get("state") or {}).get("waiting") or {} for one in containers]
    unscheduled = [one for one in conditions if one.get("type") == "PodScheduled" and one.get("status") == "False"]
    reasons = [one for one in (*unscheduled, *waiting) if one.get("reason") not in (None, "", "PodInitializing")]
    trouble = next((f"{one['reason']}: {one.get('message') or ''}".rstrip(": ") for one in reasons), "")
    return PodRow(
        name=str(metadata["name"]), role=str((metadata.get("labels") or {}).get(_COMPONENT, "")),
        phase="Terminating" if metadata.get("deletionTimestamp") else str(status.get("phase", "")),
        ready=is_ready, restarts=sum(int(one.get("restartCount") or 0) for one in containers),
        node=str((pod.get("spec") or {}).get("nodeName", "")),
        age=ago(str(metadata.get("creationTimestamp", "")), now), trouble=trouble,
    )  # fmt: skip


def event_rows(events: Iterable[Manifest], now: datetime) -> list[EventRow]:
    """The newest events, newest first."""
    found = []
    for event in events:
        series = event.get("series") or {}
        times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
        when = next((str(time) for time in times if time), "")
        found.append(
            EventRow(
                when=when[:19].replace("T", " "), age=ago(when, now), kind=str(event.get("reason", "")),
                warning=event.get("type") == "Warning", what=str(event.get("note") or event.get("message") or ""),
                count=int(series.get("count") or event.get("count") or 1),
            )
        )  # fmt: skip
    return sorted(found, key=lambda event: event.when, reverse=True)[:SHOWN_EVENTS]


def ago(when: str, now: datetime) -> str:
    """How long ago a time of the API server was: 40s, 12m, 5h, 3d; empty when it is none."""
    try:
        moment = datetime.fromisoformat(when)
    except ValueError:
        return ""
    seconds = max(0, int((now - moment.replace(tzinfo=moment.tzinfo or UTC)).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def moment(unix_seconds: float) -> str:
    """A time that a run told, in UTC; empty when it is none."""
    try:
        return clock(unix_seconds)
    except (ValueError, OverflowError, OSError):
        return ""


def plain(value: Any) -> Any:
    """For every value of a page: control characters and changes of direction become visible marks."""
    return visible(value).translate(_DIRECTIONS) if type(value) is str else value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("-inf")


def shown(rows: Sequence[Row]) -> tuple[Sequence[Row], int]:
    """The rows that the page has room for, and how many there are beyond."""
    return rows[:SHOWN_JOBS], max(0, len(rows) - SHOWN_JOBS)
