"""Prometheus metrics of the two services: counters that they keep anyway, read when a scraper asks."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from crescendo.reward_service.admission import Admission
from crescendo.reward_service.dispatch import DispatchCounters
from crescendo.reward_service.executors import Executors
from crescendo.reward_service.programs import ProgramGrading
from crescendo.reward_service.reward_models.models import ModelCounters
from crescendo.reward_service.workers import Pool, confine

_PREFIX = "crescendo_reward_"
_EXECUTOR = "crescendo_executor_"


def reward_families(counters: DispatchCounters, admission: Admission, executors: Executors) -> Iterable[Metric]:
    """The reward process's metrics."""
    items = CounterMetricFamily(_PREFIX + "items", "items answered, by outcome", labels=["outcome"])
    items.add_metric(["scored"], counters.num_scored)
    items.add_metric(["fault"], counters.num_faults)
    yield items
    verdicts = CounterMetricFamily(
        _PREFIX + "verdicts", "components, by scorer and verdict", labels=["scorer", "verdict"]
    )
    for (scorer, verdict), count in list(counters.verdicts.items()):
        verdicts.add_metric([scorer, verdict], count)
    yield verdicts
    yield CounterMetricFamily(_PREFIX + "regraded", "correct items graded a second time", counters.num_regraded)
    yield CounterMetricFamily(
        _PREFIX + "disagreements", "second gradings that differed: an alarm", counters.num_disagreements
    )
    yield CounterMetricFamily(_PREFIX + "refused_calls", "calls refused as too much", admission.num_refused)
    yield CounterMetricFamily(_PREFIX + "failovers", "requests sent to another executor", executors.num_failovers)
    yield GaugeMetricFamily(_PREFIX + "held_items", "items held now", admission.num_items)
    yield GaugeMetricFamily(_PREFIX + "held_bytes", "bytes of items held now", admission.num_bytes)
    known = GaugeMetricFamily(_PREFIX + "executors", "executors, by whether they take work", labels=["state"])
    known.add_metric(["ready"], executors.num_ready)
    known.add_metric(["paused"], len(executors.addresses) - executors.num_ready)
    yield known


def model_families(models: Mapping[str, ModelCounters]) -> Iterable[Metric]:
    """The metrics of remote reward models."""
    calls = CounterMetricFamily(
        _PREFIX + "model_calls", "calls of remote reward models, by what became of them", labels=["model", "outcome"]
    )
    for name, counters in models.items():
        calls.add_metric([name, "made"], counters.num_calls)
        calls.add_metric([name, "repeated"], counters.num_retries)
        calls.add_metric([name, "given_up"], counters.num_faults)
        calls.add_metric([name, "spared_by_cache"], counters.num_from_cache)
    yield calls


def executor_families(pool: Pool, programs: ProgramGrading) -> Iterable[Metric]:
    """The executor's metrics."""
    counters = pool.counters
    yield CounterMetricFamily(_EXECUTOR + "answered", "items that a worker answered", counters.num_answered)
    yield CounterMetricFamily(_EXECUTOR + "killed", "workers killed at a deadline", counters.num_killed)
    yield CounterMetricFamily(_EXECUTOR + "recycled", "workers replaced after their share", counters.num_recycled)
    yield CounterMetricFamily(_EXECUTOR + "lost", "workers that ended by themselves", counters.num_lost)
    yield GaugeMetricFamily(_EXECUTOR + "workers", "workers alive", pool.num_workers)
    yield GaugeMetricFamily(_EXECUTOR + "queued_items", "items waiting for a worker", pool.num_queued)
    sandbox = GaugeMetricFamily(_EXECUTOR + "sandbox", "1, for the sandbox in use", labels=["boundary", "jail", "of"])
    sandbox.add_metric([confine.BOUNDARY, confine.JAIL, "scorers"], 1)
    if programs.posture is not None:
        sandbox.add_metric([programs.posture.boundary, programs.posture.jail, "programs"], 1)
    yield sandbox
