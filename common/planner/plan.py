"""What a run needs on a device and in host memory, per stage and phase, and what to change when it does not fit."""

from dataclasses import dataclass, field

from crescendo.common.config.schema import Config
from crescendo.common.planner.phases import Machine, Phase, plan_stages, shortage
from crescendo.common.planner.remedy import remedy
from crescendo.common.planner.shape import Shape


@dataclass(frozen=True)
class Plan:
    """All phases of all stages, in order.

    layouts: of each stage, in words; concurrency: longest sequences that an engine holds at once, by stage; problem:
    the first thing that does not fit, empty when all does; fix: what to change then.
    """

    parameters: int
    phases: tuple[Phase, ...]
    layouts: dict[str, str] = field(default_factory=dict)
    concurrency: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    fix: str = ""


def make_plan(config: Config, shape: Shape, machine: Machine) -> Plan:
    """Plans every stage of every RL step; what it says to change fits by this same plan."""
    planned = plan_stages(config, shape, machine)
    problem = shortage(planned)
    return Plan(
        shape.parameters,
        tuple(phase for stage in planned for phase in stage.phases()),
        {each.stage.name: str(each.layout) for each in planned},
        {each.stage.name: each.concurrency() for each in planned} if machine.gpus else {},
        problem,
        remedy(config, shape, machine) if problem else "",
    )
