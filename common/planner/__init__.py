"""Estimates the memory of a run before it starts. Pure; used by `crescendo plan`, `crescendo run` and the operator."""

from crescendo.common.planner.find import shape_of
from crescendo.common.planner.plan import Item, Machine, Phase, Plan, make_plan
from crescendo.common.planner.shape import Shape

__all__ = ["Item", "Machine", "Phase", "Plan", "Shape", "make_plan", "shape_of"]
