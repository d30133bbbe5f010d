"""The length turn: responses grow again, to no profit, and the context limit cuts more of them.

DeepScaleR (Luo et al., 2025) left its 8K stage so: length fell for about 1000 steps, then rose; validation was flat,
then fell; the clip ratio went from 4.2 % to 6.5 %. Training went on with 16K from the checkpoint where length turned.
"""

from collections.abc import Sequence

from crescendo.common.config.rl import GateConfig
from crescendo.controller.stages.facts import GateDecision, IterationFacts, Trend


def length_turn(history: Sequence[IterationFacts], config: GateConfig) -> GateDecision:
    """Leaves when length rises, validation is flat or falling, and the clip ratio is at least min_clip_ratio.

    Needs a full window of iterations and two validations.
    """
    trend = Trend.of(history, window=config.window, smoothing=config.smoothing)
    facts = trend.as_facts()
    if trend.num_iterations < config.window:
        reason = f"needs {config.window} iterations, has {trend.num_iterations}"
        return GateDecision(False, reason, facts, config.rollback)
    if trend.num_validations < 2:
        reason = f"needs 2 validations in the stage, has {trend.num_validations}"
        return GateDecision(False, reason, facts, config.rollback)
    rising = trend.length_slope > config.min_length_slope
    flat = trend.accuracy_slope <= config.max_accuracy_slope
    clipped = trend.clip_ratio >= config.min_clip_ratio
    reason = (
        f"length slope {trend.length_slope:+.3f} (above {config.min_length_slope:g}), "
        f"validation slope {trend.accuracy_slope:+.4f} (limit {config.max_accuracy_slope:g}), "
        f"clip ratio {trend.clip_ratio:.3f} (at least {config.min_clip_ratio:g})"
    )
    return GateDecision(rising and flat and clipped, reason, facts, config.rollback)
