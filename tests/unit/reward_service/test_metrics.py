"""What a scraper is told, over HTTP."""

import urllib.request

import pytest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from crescendo.common.errors import EnvironmentProblem
from crescendo.common.metrics import MetricsServer
from crescendo.proto.v1 import common_pb2, reward_pb2
from crescendo.reward_service.admission import Admission
from crescendo.reward_service.dispatch import DispatchCounters
from crescendo.reward_service.executors import Executors
from crescendo.reward_service.metrics import reward_families


def scraped(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
        return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


async def test_the_reward_process_is_read_while_it_counts() -> None:
    counters, admission = DispatchCounters(), Admission(10, 100, 1.0)
    executors = await Executors.connect("127.0.0.1:1,127.0.0.1:2")
    server = MetricsServer(lambda: reward_families(counters, admission, executors))
    server.start("127.0.0.1", 0)
    component = common_pb2.RewardComponent(name="exact_match", raw=1.0, verdict=common_pb2.VERDICT_CORRECT)
    counters.count([reward_pb2.ScoreResult(components=[component])])
    counters.num_disagreements += 1
    with admission.hold("a", [reward_pb2.ScoreItem(response=b"123")]):
        found = scraped(server.port)
    server.close()
    await executors.close()
    assert found["crescendo_reward_items_total", "scored"] == 1
    assert found["crescendo_reward_verdicts_total", "exact_match", "correct"] == 1
    assert found["crescendo_reward_disagreements_total",] == 1
    assert (found["crescendo_reward_held_items",], found["crescendo_reward_held_bytes",]) == (1, 3)
    assert found["crescendo_reward_executors", "ready"] == 2


def test_no_port_serves_nothing_and_a_taken_one_is_named() -> None:
    silent, first, second = (MetricsServer(lambda: [CounterMetricFamily("a", "b", 1)]) for _ in range(3))
    silent.start("127.0.0.1", -1)
    first.start("127.0.0.1", 0)
    with pytest.raises(EnvironmentProblem, match=f"metrics_port {first.port}"):
        second.start("127.0.0.1", first.port)
    for server in (silent, first, second):
        server.close()
    assert silent.port == 0
