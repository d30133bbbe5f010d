"""What the operator counts, for Prometheus: jobs by phase, GPUs held, looks at jobs and how they ended.

`Counts` wraps the queue's work and is told of all jobs at each resync; it lives as long as the operator. A stuck or cut
off operator shows as a resync that grows old.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

from crescendo.common.errors import CrescendoError

_PREFIX: Final = "crescendo_operator_"
Work = Callable[[str, str], Awaitable[float]]


class Counts:
    """Since the operator's start."""

    def __init__(self) -> None:
        self._looks: Counter[str] = Counter()
        self._seconds = 0.0
        self._jobs: Counter[tuple[str, str]] = Counter()
        self._gpus = 0
        self._resync_time = 0.0

    def timed(self, work: Work) -> Work:
        """The same work, counted: `done`, `repeated` for what is tried again, `mistake` for an error of our own."""

        async def counted(namespace: str, name: str) -> float:
            begun, outcome = time.monotonic(), "mistake"
            try:
                again_s = await work(namespace, name)
                outcome = "done"
            except CrescendoError:
                outcome = "repeated"
                raise
            finally:
                self._looks[outcome] += 1
                self._seconds += time.monotonic() - begun
            return again_s

        return counted

    def saw(self, statuses: Iterable[Mapping[str, Any]]) -> None:
        """All jobs' statuses, at a resync."""
        jobs: Counter[tuple[str, str]] = Counter()
        gpus = 0
        for status in statuses:
            jobs[str(status.get("phase", "Pending")), str(status.get("reason", ""))] += 1
            gpus += int(status.get("gpus", 0))
        self._jobs, self._gpus, self._resync_time = jobs, gpus, time.time()

    def families(self, num_waiting: int) -> Iterable[Metric]:
        """The metrics, of now. num_waiting: jobs that the queue holds."""
        looks = CounterMetricFamily(_PREFIX + "reconciles", "looks at a job, by outcome", labels=["outcome"])
        for outcome in ("done", "repeated", "mistake"):
            looks.add_metric([outcome], self._looks[outcome])
        yield looks
        taken = SummaryMetricFamily(_PREFIX + "reconcile_seconds", "seconds of looks at a job")
        taken.add_metric([], self._looks.total(), self._seconds)
        yield taken
        jobs = GaugeMetricFamily(_PREFIX + "jobs", "RLJobs, by phase and its reason", labels=["phase", "reason"])
        for (phase, reason), count in self._jobs.items():
            jobs.add_metric([phase, reason], count)
        yield jobs
        yield GaugeMetricFamily(_PREFIX + "gpus", "GPUs that RLJobs' pods hold", self._gpus)
        yield GaugeMetricFamily(_PREFIX + "waiting_jobs", "jobs in the queue, due now or later", num_waiting)
        yield GaugeMetricFamily(
            _PREFIX + "resync_time_seconds", "when all jobs were listed last, since the epoch", self._resync_time
        )
