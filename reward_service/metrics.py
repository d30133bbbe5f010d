"""Prometheus metrics of the two services: counters that they keep anyway, read when a scraper asks.

A registry of its own for each service, so that two in one process (as in tests) do not meet.
"""

from collections.abc import Callable, Iterable, Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from crescendo.common.errors import EnvironmentProblem
from crescendo.reward_service.admission import Admission
from crescendo.reward_service.dispatch import DispatchCounters
from crescendo.reward_service.executors import Executors
from crescendo.reward_service.programs import ProgramGrading
from crescendo.reward_service.reward_models.models import ModelCounters
from crescendo.reward_service.workers import Pool, confine

_PREFIX = "crescendo_reward_"
_EXECUTOR = "crescendo_executor_"


class _Reader(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._read()


class MetricsServer:
    """`start` serves what `read` gives over HTTP, in a thread; `close` ends it. port: 0 when it is not served."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self.port = 0
        self._registry = CollectorRegistry()
        self._registry.register(_Reader(read))
        self._server: WSGIServer | None = None

    def start(self, host: str, port: int) -> None:
        """port: -1 serves nothing, 0 takes a free one. Raises EnvironmentProblem when it is in use."""
        if port < 0:
            return
        try:
            self._server, _ = start_http_server(port, addr=host, registry=self._registry)
        except OSError as error:
            raise EnvironmentProblem(
                f"metrics_port {port} on {host} cannot be used: {error}.",
                field="metrics_port",
                fix="Choose another port, 0 for a free one, or -1 for none.",
            ) from None
        self.port = self._server.server_port

    def close(self) -> None:
        """Ends the thread."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


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
