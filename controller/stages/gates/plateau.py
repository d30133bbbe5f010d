"""The plateau gate: nothing improves any more (DeepScaleR left its 16K stage so, with reward stuck at 62.5 %)."""

from collections.abc import Sequence

from crescendo.common.config.rl import GateConfig
from crescendo.controller.stages.facts import GateDecision, IterationFacts, Trend


def plateau(history: Sequence[IterationFacts], config: GateConfig) -> GateDecision:
    """Leaves when validation accuracy and reward are flat or falling over the window.

    Needs a full window of iterations and two validations. A slope equal to its limit counts as flat.
    """
    trend = Trend.of(history, window=config.window, smoothing=config.smoothing)
    facts = trend.as_facts()
    if trend.num_iterations < config.window:
        reason = f"needs {config.window} iterations, has {trend.num_iterations}"
        return GateDecision(False, reason, facts, config.rollback)
    if trend.num_validations < 2:
        reason = f"needs 2 validations in the stage, has {trend.num_validations}"
        return GateDecision(False, reason, facts, config.rollback)
    flat_accuracy = trend.accuracy_slope <= config.max_accuracy_slope
    flat_reward = trend.reward_slope <= config.max_reward_slope
    reason = (
        f"validation slope {trend.accuracy_slope:+.4f} (limit {config.max_accuracy_slope:g}), "
        f"reward slope {trend.reward_slope:+.4f} (limit {config.max_reward_slope:g})"
    )
    return GateDecision(flat_accuracy and flat_reward, reason, facts, config.rollback)
