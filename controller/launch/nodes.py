"""Ray's nodes against the devices of a layout: which groups of pods still grow, which still shrink. Pure.

Pods of the operator carry a resource that names their group. Their number follows the stages (operator/size.py): the
controller says how many devices it wants, and waits here until they are there, and until those that go have gone,
so that nothing is placed on a pod that is about to end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from crescendo.common.config.layouts import Layout

GROUPS: Final = {"trainer": "crescendo-worker", "rollout": "crescendo-rollout"}
"""Resource that names a pod's group, by the role that lives there; both roles live in the first when not apart."""
Resources = Mapping[str, float]


@dataclass(frozen=True)
class Sizes:
    """Of one group: pods that are there and pods that the layout needs."""

    group: str
    have: int
    need: int


def sizes(nodes: Iterable[Resources], layout: Layout, *, on_gpus: bool) -> list[Sizes]:
    """Each group's size, from the resources of the nodes that live; empty where no node names a group.

    A node has as many devices as GPUs; on cores it counts as one.
    """
    known = list(nodes)
    if not any(group in node for node in known for group in GROUPS.values()):
        return []
    wanted = {"trainer": layout.trainer_devices, "rollout": layout.rollout_devices}
    found = []
    for role, group in GROUPS.items():
        if not wanted[role]:
            continue
        pods = [node for node in known if group in node]
        each = max([1, *(int(node.get("GPU", 0)) for node in pods)]) if on_gpus else 1
        found.append(Sizes(group, len(pods), -(-wanted[role] // each)))
    return found


def missing(found: Iterable[Sizes]) -> str:
    """Pods that have not come yet, for people; empty when all are there."""
    return ", ".join(f"{one.need - one.have} of {one.need} {one.group} pods" for one in found if one.have < one.need)


def surplus(found: Iterable[Sizes]) -> str:
    """Pods that are still to go, for people; empty when none is."""
    return ", ".join(f"{one.have - one.need} {one.group} pods" for one in found if one.have > one.need)
