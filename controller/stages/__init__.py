"""Stages: spans of iterations with one context length, entered and left by rule."""

from crescendo.controller.stages.facts import GateDecision, IterationFacts, Trend
from crescendo.controller.stages.gates import GATES, decide
from crescendo.controller.stages.scheduler import (
    StageRecord,
    StageScheduler,
    Transition,
    TransitionKind,
    nearest_commit,
)

__all__ = [
    "GATES",
    "GateDecision",
    "IterationFacts",
    "StageRecord",
    "StageScheduler",
    "Transition",
    "TransitionKind",
    "Trend",
    "decide",
    "nearest_commit",
]
