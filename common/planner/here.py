"""This machine as the planner sees it, and the refusal of a run that cannot fit it."""

import os
from pathlib import Path
from typing import Final

import psutil

from crescendo.common.config.schema import Config
from crescendo.common.device_memory import device_memory
from crescendo.common.errors import ConfigError
from crescendo.common.planner.find import shape_of
from crescendo.common.planner.phases import GIB, Machine
from crescendo.common.planner.plan import make_plan

_CGROUP_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_limit() -> int:
    """Main memory in bytes, as far as the container allows."""
    limits = [psutil.virtual_memory().total]
    for path in _CGROUP_LIMITS:
        text = path.read_text().strip() if path.exists() else ""
        if text.isdecimal():
            limits.append(int(text))
    return min(limits)


def this_machine(config: Config) -> Machine:
    """What a local run computes on."""
    if config.placement.device == "cpu" or not Path("/dev/nvidia0").exists():
        return Machine(0, None, memory_limit())
    return Machine(config.placement.num_devices, device_memory().total_bytes, memory_limit())


def _machine(config: Config) -> Machine | None:
    """What the run computes on, as far as it is known here."""
    if "RAY_ADDRESS" not in os.environ:
        return this_machine(config)
    told = int(config.placement.device_memory_gib * GIB)
    return Machine(config.placement.num_devices, told) if told and config.placement.device != "cpu" else None


def refuse_early(config: Config, machine: Machine | None = None) -> None:
    """Raises ConfigError when a run cannot fit; machine: None for the one that the run computes on.

    Says nothing about models whose shape is not known here: their turn comes when they were fetched. Nor about a Ray
    cluster, but with placement.device_memory_gib.
    """
    machine = machine or _machine(config)
    shape = shape_of(config.model)
    made = make_plan(config, shape, machine) if machine is not None and shape is not None else None
    if made is not None and made.problem:
        raise ConfigError(
            f"the run does not fit: {made.problem}",
            field="steps",
            fix=f"{made.fix} See all of it: crescendo plan RECIPE.",
        )
