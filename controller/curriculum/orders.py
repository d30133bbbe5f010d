"""Orders: which part of the difficulty ranking an iteration may draw from. Pure functions, one an order.

N is the number of prompts; a ranking lists prompt indices from easy to hard.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from crescendo.common.config.rl import CurriculumConfig
from crescendo.common.errors import ConfigError

Indices = npt.NDArray[np.int64]
Order = Callable[[CurriculumConfig, Indices, int, int], Indices]


def rank_by_difficulty(difficulties: Sequence[float | None]) -> Indices:
    """Prompt indices from easy to hard, [N]; ties keep the data's order, a prompt without difficulty counts as 0.5."""
    values = np.array([0.5 if value is None else value for value in difficulties], dtype=np.float64)
    return np.argsort(values, kind="stable").astype(np.int64)


def uniform(config: CurriculumConfig, ranking: Indices, iteration: int, least: int) -> Indices:
    """Every prompt, at any time."""
    return ranking


def easy_to_hard(config: CurriculumConfig, ranking: Indices, iteration: int, least: int) -> Indices:
    """The easiest share, growing in a line from start_fraction to everything over ramp_iterations."""
    progress = min(1.0, max(0, iteration) / config.ramp_iterations)
    share = config.start_fraction + (1.0 - config.start_fraction) * progress
    return ranking[: max(least, math.ceil(share * len(ranking)))]


def uniform_then_hard(config: CurriculumConfig, ranking: Indices, iteration: int, least: int) -> Indices:
    """Everything until hard_from_iteration, then the hardest hard_fraction (Kimi k1.5, figure 9)."""
    if iteration < config.hard_from_iteration:
        return ranking
    return ranking[-max(least, math.ceil(config.hard_fraction * len(ranking))) :]


ORDERS: Mapping[str, Order] = {
    "uniform": uniform,
    "easy_to_hard": easy_to_hard,
    "uniform_then_hard": uniform_then_hard,
    "epoch": uniform,  # Curriculum goes through it without drawing
}


def eligible_prompts(config: CurriculumConfig, ranking: Indices, iteration: int, least: int) -> Indices:
    """Prompts that the iteration may draw; at least `least` of them while the data set has so many.

    Raises ConfigError on an unknown order.
    """
    order = ORDERS.get(config.order)
    if order is None:
        raise ConfigError(
            f"curriculum.order is {config.order!r}; it must be one of {', '.join(ORDERS)}.",
            field="curriculum.order",
            fix="Choose one of the orders named.",
        )
    return order(config, ranking, iteration, max(1, min(least, len(ranking))))
