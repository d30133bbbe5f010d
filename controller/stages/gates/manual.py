"""The manual gate: a person decides, as DeepScaleR's authors did."""

from collections.abc import Sequence

from crescendo.common.config.rl import GateConfig
from crescendo.controller.stages.facts import GateDecision, IterationFacts, Trend


def manual(history: Sequence[IterationFacts], config: GateConfig) -> GateDecision:
    """Never leaves by itself; shows the numbers that a person would look at."""
    trend = Trend.of(history, window=config.window, smoothing=config.smoothing)
    return GateDecision(False, "waits for `crescendo promote`", trend.as_facts(), config.rollback)
