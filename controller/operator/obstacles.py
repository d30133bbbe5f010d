"""Why pods do not run: for `crescendo get`, and for the status of a job that waits for its pods. Pure."""

from collections.abc import Sequence
from typing import Final

from crescendo.controller.operator.resource import Manifest, printable

SHOWN: Final = 500  # characters of what scheduler and kubelet say


def obstacle(pod: Manifest) -> str:
    """Why a pod does not run: why it finds no place, or what a container of it waits for; empty when it runs."""
    status = pod.get("status") or {}
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason", "not scheduled"))
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return f"{container['name']}: {waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    return ""


def first_obstacle(pods: Sequence[Manifest]) -> str:
    """What to mend first of a run's pods: a worker's obstacle, since a head may only wait for its worker's node."""
    blocked = [pod for pod in pods if obstacle(pod)]
    if not blocked:
        return ""
    pod = min(blocked, key=_is_head)
    why = printable(obstacle(pod)).replace("\n", " ")[:SHOWN]
    if _is_head(pod) and _follows(pod) and any(_is_placed(other) for other in pods):
        why += "; it joins its worker's node, where spec.resources.head must be free beside spec.resources.worker"
    return f"{pod['metadata']['name']}: {why}"


def _is_head(pod: Manifest) -> bool:
    return bool(pod["metadata"].get("labels", {}).get("ray.io/node-type") == "head")


def _is_placed(pod: Manifest) -> bool:
    return bool(pod.get("spec", {}).get("nodeName"))


def _follows(head: Manifest) -> bool:
    """Whether it has to go where a worker is, and has not gone there yet."""
    return "podAffinity" in (head.get("spec", {}).get("affinity") or {}) and not _is_placed(head)
