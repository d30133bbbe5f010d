"""Whether a job's run fits its pods and GPUs, as far as the RLJob says: refused before anything is created.

The shape of a model is known for `scratch` only, since a folder that the run names is none of the operator's. Of any
other model the run itself asks the same planner in its head's pod, once it has the model (common/planner/here.py). How
large a GPU is, stands in placement.deviceMemory; without it only the pods' memory is looked at.
"""

from crescendo.common.errors import ConfigError
from crescendo.common.planner import Machine, make_plan, shape_of
from crescendo.controller.operator.children.pods import resources_of
from crescendo.controller.operator.children.run_file import checked
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.quantity import quantity_bytes
from crescendo.controller.operator.resource import Job


def capacity_problems(job: Job, options: Options) -> list[str]:
    """What does not fit; empty for a run that is refused for other reasons already."""
    try:
        config = checked(job, options)
    except ConfigError:
        return []
    shape = shape_of(config.model) if config.model.source == "scratch" else None
    if shape is None:
        return []
    devices = job.devices_per_node
    pod = quantity_bytes(str(resources_of(job, "worker", devices)["limits"]["memory"]))
    gpu = quantity_bytes(str(job.placement.get("deviceMemory", ""))) if devices else None
    made = make_plan(config, shape, Machine(job.devices, gpu, pod, gpus_a_machine=devices))
    about = "spec.placement.deviceMemory, spec.resources.worker.memory" if gpu else "spec.resources.worker.memory"
    return [f"{about}: {made.problem} {made.fix}"] if made.problem else []
