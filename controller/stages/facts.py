"""What gates look at: the facts of each iteration, and the trends over them. Pure.

A history lists the iterations of one stage on one branch, oldest first; it starts anew when a stage is entered or
the run rolls back, so smoothing never mixes two context lengths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class IterationFacts:
    """One iteration's averages.

    reward: mean reward of the trained trajectories; accuracy: validation accuracy measured after this iteration,
    None when it was not validated; length: mean response length in tokens; clip_ratio: share of the ended
    responses that the context limit cut.
    """

    iteration: int
    reward: float
    length: float
    clip_ratio: float
    accuracy: float | None = None


@dataclass(frozen=True)
class GateDecision:
    """Whether to leave the stage, why in words, the numbers behind it, and where the next stage starts from."""

    leave: bool
    reason: str
    facts: dict[str, float] = field(default_factory=dict)
    rollback: str = "last"


@dataclass(frozen=True)
class Trend:
    """Smoothed value and slope (per iteration) of each metric at the end of a history."""

    num_iterations: int
    num_validations: int
    reward: float
    reward_slope: float
    length: float
    length_slope: float
    clip_ratio: float
    accuracy: float
    accuracy_slope: float

    @classmethod
    def of(cls, history: Sequence[IterationFacts], *, window: int, smoothing: float) -> "Trend":
        """Moving averages over the whole history, slopes over its last `window` iterations.

        Accuracy is known only at validations: its slope is fitted through the validations in the window (through
        the last two, if the window holds fewer), so that a value carried forward never looks like a plateau.
        Metrics without a value are NaN.
        """
        validated = [facts for facts in history if facts.accuracy is not None]
        reward = exponential_average([facts.reward for facts in history], smoothing)
        length = exponential_average([facts.length for facts in history], smoothing)
        clip_ratio = exponential_average([facts.clip_ratio for facts in history], smoothing)
        accuracy = exponential_average([facts.accuracy or 0.0 for facts in validated], smoothing)
        steps = np.array([facts.iteration for facts in history], dtype=np.float64)
        recent = _recent_validations(validated, history, window)
        return cls(
            num_iterations=len(history),
            num_validations=len(validated),
            reward=_last(reward),
            reward_slope=slope(steps[-window:], reward[-window:]),
            length=_last(length),
            length_slope=slope(steps[-window:], length[-window:]),
            clip_ratio=_last(clip_ratio),
            accuracy=_last(accuracy),
            accuracy_slope=slope(
                np.array([facts.iteration for facts in recent], dtype=np.float64),
                np.array([facts.accuracy for facts in recent], dtype=np.float64),
            ),
        )

    def as_facts(self) -> dict[str, float]:
        """The known numbers by name, for events and status; NaN, which JSON lacks, is left out."""
        numbers = {
            "iterations": float(self.num_iterations),
            "validations": float(self.num_validations),
            "reward": self.reward,
            "reward_slope": self.reward_slope,
            "length": self.length,
            "length_slope": self.length_slope,
            "clip_ratio": self.clip_ratio,
            "accuracy": self.accuracy,
            "accuracy_slope": self.accuracy_slope,
        }
        return {name: value for name, value in numbers.items() if not math.isnan(value)}


def exponential_average(values: Sequence[float], smoothing: float) -> Values:
    """Moving average m_t = (1 - smoothing) m_{t-1} + smoothing v_t with m_0 = v_0, [T]."""
    averaged = np.empty(len(values), dtype=np.float64)
    for step, value in enumerate(values):
        averaged[step] = value if step == 0 else averaged[step - 1] + smoothing * (value - averaged[step - 1])
    return averaged


def slope(steps: Values, values: Values) -> float:
    """Least-squares slope of values over steps; NaN with fewer than two distinct steps."""
    if len(steps) < 2:
        return float("nan")
    centred = steps - steps.mean()
    spread = float(centred @ centred)
    return float(centred @ (values - values.mean())) / spread if spread > 0 else float("nan")


def _recent_validations(
    validated: Sequence[IterationFacts], history: Sequence[IterationFacts], window: int
) -> Sequence[IterationFacts]:
    if not validated:
        return []
    first = history[-window:][0].iteration
    inside = [facts for facts in validated if facts.iteration >= first]
    return inside if len(inside) >= 2 else validated[-2:]


def _last(values: Values) -> float:
    return float(values[-1]) if len(values) else float("nan")
