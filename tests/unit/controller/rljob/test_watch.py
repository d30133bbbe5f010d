"""Which events make a job due: what a decision could turn on, and nothing else."""

import copy
from typing import Any

import pytest

from crescendo.controller.operator.resource import Attempt, Cluster
from crescendo.controller.operator.watch import Changes, wishes

JOB = {
    "metadata": {"uid": "1", "name": "math", "namespace": "team", "generation": 1, "resourceVersion": "5"},
    "spec": {"run": {}},
}
RAYJOB = {
    "metadata": {"uid": "2", "name": "math-1", "namespace": "team", "labels": {"rl.crescendo.dev/attempt": "1"}},
    "spec": {},
    "status": {"jobDeploymentStatus": "Running", "jobStatus": "PENDING"},
}
CLUSTER = {
    "metadata": {"uid": "3", "name": "math-1-abc", "namespace": "team", "resourceVersion": "5"},
    "spec": {"workerGroupSpecs": [{"groupName": "worker", "replicas": 2}]},
    "status": {"desiredWorkerReplicas": 2, "readyWorkerReplicas": 1, "conditions": []},
}
HEAD_READY = [{"type": "HeadPodReady", "status": "True"}]


def changed(body: dict[str, Any], part: str, **fields: Any) -> dict[str, Any]:
    found = copy.deepcopy(body)
    found.setdefault(part, {}).update(fields)
    return found


@pytest.mark.parametrize(
    ("body", "what", "news", "noise"),
    [
        (JOB, wishes, ("metadata", {"generation": 2}), ("status", {"phase": "Running"})),
        (JOB, wishes, ("metadata", {"annotations": {"rl.crescendo.dev/request": "pause x"}}), ("metadata", {})),
        (JOB, wishes, ("metadata", {"deletionTimestamp": "now"}), ("metadata", {"resourceVersion": "6"})),
        (RAYJOB, Attempt.from_body, ("status", {"jobStatus": "RUNNING"}), ("status", {"startTime": "now"})),
        (RAYJOB, Attempt.from_body, ("spec", {"suspend": True}), ("metadata", {"resourceVersion": "6"})),
        (CLUSTER, Cluster.from_body, ("status", {"readyWorkerReplicas": 2}), ("status", {"lastUpdateTime": "now"})),
        (CLUSTER, Cluster.from_body, ("status", {"conditions": HEAD_READY}), ("status", {"endpoints": {}})),
    ],
)
def test_an_event_is_news_when_a_decision_could_turn_on_it(
    body: dict[str, Any], what: Any, news: tuple[str, dict[str, Any]], noise: tuple[str, dict[str, Any]]
) -> None:
    changes = Changes()
    assert changes.tells({"type": None, "object": body}, what)  # listed
    assert not changes.tells({"type": "MODIFIED", "object": changed(body, noise[0], **noise[1])}, what)
    after = changed(body, news[0], **news[1])
    assert changes.tells({"type": "MODIFIED", "object": after}, what)
    assert not changes.tells({"type": "MODIFIED", "object": after}, what)


def test_a_deletion_is_news_and_forgotten() -> None:
    changes = Changes()
    for event in ("ADDED", "DELETED", "ADDED"):
        assert changes.tells({"type": event, "object": JOB}, wishes)


def test_a_cluster_counts_its_head() -> None:
    assert Cluster.from_body(CLUSTER) == Cluster(1, 3, {"worker": 2})
    assert Cluster.from_body(changed(CLUSTER, "status", conditions=HEAD_READY)).ready == 2
    assert Cluster.from_body({}) == Cluster(0, 1, {})
