"""What is told of a pod that does not run."""

from typing import Any

import pytest

from crescendo.controller.operator.jobs import obstacle

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
