"""What is told of a pod that does not run."""

from typing import Any

import pytest

from crescendo.controller.operator.obstacles import first_obstacle, obstacle

UNPLACED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4 nodes are available"}
PLACED = {"type": "PodScheduled", "status": "True"}


def container(name: str, **state: Any) -> dict[str, Any]:
    return {"name": name, "state": state}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"conditions": [UNPLACED]}, "0/4 nodes are available"),
        (
            {"containerStatuses": [container("ray-head", waiting={"reason": "ErrImagePull", "message": "not found"})]},
            "ray-head: ErrImagePull: not found",
        ),
        (
            {
                "conditions": [PLACED],
                "initContainerStatuses": [container("fetch-model", waiting={"reason": "CrashLoopBackOff"})],
                "containerStatuses": [container("ray-head", waiting={"reason": "PodInitializing"})],
            },
            "fetch-model: CrashLoopBackOff",
        ),
        ({"containerStatuses": [container("ray-head", waiting={"reason": "ContainerCreating"})]}, ""),
        ({"conditions": [PLACED], "containerStatuses": [container("ray-head", running={})]}, ""),
        ({}, ""),
    ],
)
def test_why_a_pod_does_not_run(status: dict[str, Any], said: str) -> None:
    assert obstacle({"status": status}) == said


def pod(name: str, status: dict[str, Any], **spec: Any) -> dict[str, Any]:
    labels = {"ray.io/node-type": "head" if "head" in name else "worker"}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status}


FOLLOWS: dict[str, Any] = {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}}
RUNS = {"conditions": [PLACED], "containerStatuses": [container("ray", running={})]}


def test_a_worker_is_told_of_before_the_head_that_waits_for_it() -> None:
    pods = [pod("math-head", {"conditions": [UNPLACED]}, **FOLLOWS), pod("math-worker", {"conditions": [UNPLACED]})]
    assert first_obstacle(pods) == "math-worker: 0/4 nodes are available"
    assert first_obstacle([pod("math-head", RUNS), pod("math-worker", RUNS)]) == ""


def test_a_head_without_room_beside_its_worker_is_told_with_what_needs_to_be_free() -> None:
    head, worker = pod("math-head", {"conditions": [UNPLACED]}, **FOLLOWS), pod("math-worker", RUNS, nodeName="node-1")
    told = first_obstacle([head, worker])
    assert told.startswith("math-head: 0/4 nodes are available; it joins its worker's node")
    assert "spec.resources.head" in told
    anywhere = pod("math-head", {"conditions": [UNPLACED]})
    assert first_obstacle([anywhere, worker]) == "math-head: 0/4 nodes are available"
    pulling = {"containerStatuses": [container("ray-head", waiting={"reason": "ErrImagePull"})]}
    placed = pod("math-head", pulling, nodeName="node-1", **FOLLOWS)
    assert first_obstacle([placed, worker]) == "math-head: ray-head: ErrImagePull"


def test_what_a_pod_says_is_cut_and_printable() -> None:
    loud = {"conditions": [{**UNPLACED, "message": "a\x1b[31m" + "b" * 5000}]}
    told = first_obstacle([pod("math-worker", loud)])
    assert told.isprintable()
    assert len(told) < 600
