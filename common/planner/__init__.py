"""Estimates the memory of a run before it starts. Pure; used by `crescendo plan`, `crescendo run` and the operator."""

from crescendo.common.planner.find import shape_of
from crescendo.common.planner.here import memory_limit, refuse_early
from crescendo.common.planner.phases import Item, Machine, Phase
from crescendo.common.planner.plan import Plan, make_plan
from crescendo.common.planner.shape import Shape

__all__ = [
    "Item",
    "Machine",
    "Phase",
    "Plan",
    "Shape",
    "make_plan",
    "memory_limit",
    "refuse_early",
    "shape_of",
]
