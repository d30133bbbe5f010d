"""The step gate: a fixed number of iterations."""

from collections.abc import Sequence

from crescendo.common.config.rl import GateConfig
from crescendo.controller.stages.facts import GateDecision, IterationFacts


def step(history: Sequence[IterationFacts], config: GateConfig) -> GateDecision:
    """Leaves after `iterations` iterations in the stage."""
    done = len(history)
    facts = {"iterations": float(done)}
    return GateDecision(done >= config.iterations, f"iteration {done} of {config.iterations}", facts, config.rollback)
