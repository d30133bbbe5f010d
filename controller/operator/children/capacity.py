"""Whether a job's run fits the memory of its pods, as far as the RLJob says: refused before anything is created.

The shape of a model is known for `scratch` only (the operator sees no model folders), and of GPUs only how many.
"""

import re
from typing import Final

from crescendo.common.config import check_mapping
from crescendo.common.errors import ConfigError
from crescendo.common.planner import Machine, make_plan, shape_of
from crescendo.controller.operator.children.pods import resources_of
from crescendo.controller.operator.children.run_file import run_file
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import Job

_QUANTITY: Final = re.compile(r"([0-9.]+)([A-Za-z]*)")
_UNITS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def capacity_problems(job: Job, options: Options) -> list[str]:
    """What does not fit; empty for a run that is refused for other reasons already."""
    try:
        config = check_mapping(run_file(job, options), "spec.run")
    except ConfigError:
        return []
    shape = shape_of(config.model)
    if shape is None:
        return []
    devices = job.devices_per_node
    memory = quantity_bytes(resources_of(job, "worker", devices)["limits"]["memory"])
    made = make_plan(config, shape, Machine(job.devices, None, memory, gpus_a_machine=devices))
    return [f"spec.resources.worker.memory: {made.problem} {made.fix}"] if made.problem else []


def quantity_bytes(text: str) -> int | None:
    """A Kubernetes quantity of memory in bytes; None for one that this does not read."""
    found = _QUANTITY.fullmatch(str(text))
    if found is None:
        return None
    unit = {**_UNITS, **_UNITS_BINARY}.get(found[2])
    return int(float(found[1]) * unit) if unit else None
