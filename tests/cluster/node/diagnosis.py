"""What helps to see why a job in pods did not get on."""

import json

from tests.cluster.jobs import JobView
from tests.cluster.kube.control_plane import KubectlError
from tests.cluster.kube.node import Node


def diagnosis(node: Node, job: JobView) -> str:
    """Everything that helps to see why a job did not get on."""
    parts = [json.dumps(job.status(), indent=1)]
    for arguments in (("get", "pods", "-A", "-o", "wide"), ("get", "events", "-n", job.namespace)):
        parts.append(node.kubectl(*arguments))
    for pod in node.get("pods", "-n", job.namespace)["items"]:
        name = pod["metadata"]["name"]
        try:
            said = node.kubectl("logs", "-n", job.namespace, name, "--all-containers", "--tail=60")
        except KubectlError as error:  # of a container that has not started
            said = str(error)
        parts.append(f"---- {name}\n{said}")
    return "\n".join(parts)
