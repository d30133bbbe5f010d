"""Alerts and dashboard read what the services really count; what is scraped is what they serve."""

import itertools
import json
import re
from typing import Any

import promql_parser
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from crescendo.controller.operator.metrics import Counts
from crescendo.reward_service.admission import Admission
from crescendo.reward_service.dispatch import DispatchCounters
from crescendo.reward_service.executors import Executors
from crescendo.reward_service.metrics import executor_families, reward_families
from crescendo.reward_service.programs import ProgramGrading
from crescendo.reward_service.sandbox.options import SandboxOptions
from crescendo.reward_service.workers import Pool
from tests.unit.chart.rendering import CHART, render, render_files

API = "monitoring.coreos.com/v1"
ON: dict[str, Any] = {
    "monitoring": {
        "serviceMonitor": {"enabled": True, "interval": "5s", "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "grafanaDashboard": {"enabled": True},
    }
}
# Of Prometheus itself: a metric, and labels of what it scrapes.
OTHERS = {"up"}
TARGET_LABELS = {"namespace", "service"}


async def counted() -> set[tuple[str, str]]:
    """(sample, label) of all that operator and reward services serve; the label is empty for samples without one."""
    executors = await Executors.connect("127.0.0.1:1")
    counters = DispatchCounters()
    counters.verdicts["exact_match", "correct"] = 1
    pool = Pool(num_workers=1, memory_bytes=1, recycle_after=1, modules=(), max_queued=1)
    programs = ProgramGrading(pool, SandboxOptions())
    counts = Counts()
    counts.saw([{"phase": "Running", "reason": "Training"}])

    class All(Collector):
        def collect(self) -> Any:
            yield from reward_families(counters, Admission(1, 1, 1.0), executors)
            yield from executor_families(pool, programs)
            yield from counts.families(0)

    registry = CollectorRegistry()
    registry.register(All())
    await executors.close()
    found = set()
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", generate_latest(registry).decode(), re.MULTILINE):
        found |= {(name, "")} | {(name, label) for label in re.findall(r"(\w+)=", labels)}
    return found


def expressions() -> list[str]:
    (rule,) = [one for one in render(ON, [API]) if one["kind"] == "PrometheusRule"]
    alerts = [alert["expr"] for group in rule["spec"]["groups"] for alert in group["rules"]]
    panels = json.loads((CHART / "files/dashboard.json").read_text())["panels"]
    return alerts + [target["expr"] for panel in panels for target in panel["targets"]]


def parts(expression: str) -> list[promql_parser.Expr]:
    """An expression of PromQL and all that it is made of, outermost first; raises ValueError when it is none."""
    found: list[promql_parser.Expr] = []
    promql_parser.walk(promql_parser.parse(expression), found.append)
    return found


async def test_every_expression_reads_what_is_counted() -> None:
    served = await counted()
    assert len(expressions()) > 8
    for expression in expressions():
        selectors = [part for part in parts(expression) if isinstance(part, promql_parser.VectorSelector)]
        assert selectors, expression
        for selector in selectors:
            if selector.name not in OTHERS:
                labels = {"", *(matcher.name for matcher in selector.matchers.matchers)} - TARGET_LABELS
                assert {(selector.name, label) for label in labels} <= served, expression
        kept = [part.modifier.labels for part in parts(expression) if getattr(part, "modifier", None)]
        for label in itertools.chain.from_iterable(kept):
            assert {(selector.name, label) for selector in selectors} <= served, expression


def test_alerts_name_this_release() -> None:
    text = " ".join(expressions())
    assert 'service="crescendo-operator"' in text
    assert 'service="crescendo-reward"' in text
    without = render({**ON, "reward": {"enabled": False}}, [API])
    (rule,) = [one for one in without if one["kind"] == "PrometheusRule"]
    assert "crescendo-reward" not in json.dumps(rule)


def test_what_is_scraped_is_a_port_of_a_service() -> None:
    objects = render(ON, [API])
    (monitor,) = [one for one in objects if one["kind"] == "ServiceMonitor"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["interval"] == "5s"
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    scraped = {
        service["metadata"]["name"]
        for service in objects
        if service["kind"] == "Service" and wanted <= service["metadata"]["labels"].items()
        for port in service["spec"]["ports"]
        if port["name"] == endpoint["port"]
    }
    assert scraped == {"crescendo-operator", "crescendo-reward", "crescendo-executor"}


def test_where_nobody_serves_the_kinds_the_notes_say_so() -> None:
    files = render_files(ON)
    kinds = {found["kind"] for text in files.values() if "kind:" in text for found in yaml.safe_load_all(text) if found}
    assert not {"ServiceMonitor", "PrometheusRule"} & kinds
    (notes,) = [text for name, text in files.items() if name.endswith("NOTES.txt")]
    assert "though they were asked for" in notes
