"""The status that an RLJob gets: conditions, phase, progress. Pure; the API server's JSON.

`Draft` starts from the present status and is changed by a decision (plan.py); what was not touched stays, so that a
steady job yields an equal status and no write.
"""

import copy
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from crescendo.controller.operator.resource import (
    EXPIRING,
    Job,
    Manifest,
    Observed,
    Report,
    format_time,
    parse_time,
    printable,
)

PROGRESS_EVERY: Final = timedelta(seconds=30)
CONDITIONS: Final = (
    "Accepted", "Queued", "ClusterReady", "Running", EXPIRING, "Checkpointed", "Suspended", "Complete", "Failed",
)  # fmt: skip
PODLESS: Final = ("Suspended", "Restarting", "Succeeded", "Failed")
SHOWN_METRICS: Final = 64
MOST_SHOWN: Final = 10**9  # iterations or hours: no run has more, and the fields have room for no more


class Draft:
    """A status in the making."""

    def __init__(self, job: Job, now: datetime) -> None:
        self._job = job
        self._now = now
        self.value: Manifest = copy.deepcopy(dict(job.status))

    def set(self, **fields: Any) -> None:
        """Sets top-level fields; None removes one."""
        for name, value in fields.items():
            if value is None:
                self.value.pop(name, None)
            else:
                self.value[name] = format_time(value) if isinstance(value, datetime) else value

    def time(self, name: str) -> datetime | None:
        """A time as it stands in the draft."""
        value = self.value.get(name)
        return parse_time(value) if value else None

    def phase(self, phase: str, reason: str, message: str = "") -> None:
        """The summary for people."""
        self.set(phase=phase, reason=reason, message=printable(message)[:1024])

    def running(self) -> None:
        """The summary of a job that runs: what is wrong with it, if something is."""
        expiring = self._found(EXPIRING)
        if expiring is not None and expiring["status"] == "True":
            self.phase("Running", EXPIRING, expiring["message"])
        else:
            self.phase("Running", "Running")

    def holds(self, kind: str) -> bool:
        """Whether a condition holds as the draft stands."""
        found = self._found(kind)
        return found is not None and found["status"] == "True"

    def condition(self, kind: str, holds: bool, reason: str, message: str = "") -> None:
        """Sets a condition; its time moves only when it turns."""
        status = "True" if holds else "False"
        conditions = self.value.setdefault("conditions", [])
        found = self._found(kind)
        turned = found is None or found["status"] != status
        if found is None:
            found = {"type": kind}
            conditions.append(found)
            conditions.sort(key=lambda one: CONDITIONS.index(one["type"]))
        if turned:
            found["lastTransitionTime"] = format_time(self._now)
        found.update(status=status, reason=reason, message=printable(message)[:32768])
        found["observedGeneration"] = self._job.generation

    def running_seconds(self) -> int:
        """Running time so far, the present attempt included."""
        total = int(self.value.get("runningSeconds", 0))
        running = self._found("Running")
        if running is not None and running["status"] == "True":
            # Another node's clock may be behind.
            total += max(0, round((self._now - parse_time(running["lastTransitionTime"])).total_seconds()))
        return total

    def stop_running(self, reason: str, message: str = "") -> None:
        """The present attempt's cluster is no more; its running time is added up."""
        self.set(runningSeconds=self.running_seconds())
        self.condition("Running", False, reason, message)
        self.condition("ClusterReady", False, reason, message)
        self.set(readySummary=None, gpus=0)

    def cluster(self, observed: Observed, ray_job: str, ray_cluster: str) -> None:
        """Which child serves the job, and how much of it is up."""
        ready, wanted = observed.pods
        self.set(
            cluster={"rayJob": ray_job, "rayCluster": ray_cluster} if ray_cluster else {"rayJob": ray_job},
            readySummary=f"{ready}/{wanted}",
            gpus=observed.job.gpus(sum(observed.replicas.values())) if observed.replicas else observed.job.devices,
        )

    def progress(self, report: Report) -> None:
        """The run's own numbers, at most every PROGRESS_EVERY unless stage or phase changed."""
        shown: Mapping[str, Any] = self.value.get("progress") or {}
        last = shown.get("lastUpdatedTime")
        moved = shown.get("stage") != report.stage or shown.get("runPhase") in (None, "start")
        if last and self._now - parse_time(last) < PROGRESS_EVERY and not moved:
            return
        if report.committed_iteration > int((self.value.get("checkpoint") or {}).get("iteration", -1)):
            self.set(checkpoint={"iteration": report.committed_iteration, "time": format_time(self._now)})
            self.condition("Checkpointed", True, "Committed", f"iteration {report.committed_iteration}")
            self.set(failures=0)
        fresh = _progress(report)
        for figure in ("reward", "responseLength"):  # a row of validation has no reward, and says nothing against it
            fresh[figure] = fresh[figure] or shown.get(figure, "")
        if fresh != {key: value for key, value in shown.items() if key != "lastUpdatedTime"}:
            self.set(progress={**fresh, "lastUpdatedTime": format_time(self._now)})

    def finish(self) -> Manifest:
        """The status to store."""
        for kind in ("Queued", EXPIRING):
            if self.holds(kind) and self.value.get("phase") in PODLESS:
                self.condition(kind, False, self.value["phase"])
        self.set(observedGeneration=self._job.generation)
        return self.value

    def _found(self, kind: str) -> Manifest | None:
        found: Manifest | None = next((one for one in self.value.get("conditions", ()) if one["type"] == kind), None)
        return found


def _progress(report: Report) -> Manifest:
    metrics, iteration = report.metrics, min(MOST_SHOWN, report.iteration)
    # An iteration that completes no group counts for no stage.
    total = max(iteration, min(MOST_SHOWN, report.total_iterations))
    return {
        "iteration": iteration,
        "totalIterations": total,
        "summary": f"{iteration}/{total}",
        "stage": report.stage,
        "runPhase": report.phase,
        "reward": _text(metrics.get("reward")),
        "responseLength": _text(metrics.get("length")),
        "weightVersion": report.weight_version,
        "leaseHolder": report.lease_holder,
        "eta": _duration(report.eta_s),
        "metrics": [{"name": name, "value": _text(value)} for name, value in sorted(metrics.items())[:SHOWN_METRICS]],
    }


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 0:
        return ""
    minutes, hours = int(seconds // 60) % 60, min(MOST_SHOWN, int(seconds // 3600))
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{int(seconds) % 60:02d}s"
