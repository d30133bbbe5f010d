"""Group relative policy optimization (Shao et al. 2024, arXiv 2402.03300, eq. 3), without a critic.

Per token: -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = pi / pi_iterate. A larger clip_high is
DAPO's clip-higher (Yu et al. 2025, section 3.1); no division by the standard deviation is Dr. GRPO's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from crescendo.common.errors import RequestError
from crescendo.trainer.algorithms.base import AGGREGATIONS, Tokens

_MAX_LOG_RATIO = 20.0  # exp of more overflows float32 before the clip can act


@dataclass(frozen=True)
class Grpo:
    """Clip range, scaling of advantages and aggregation; constant_tokens only for sequence_sum_constant."""

    clip_low: float
    clip_high: float
    aggregation: str = "token_mean"
    normalize_std: bool = True
    constant_tokens: float = 0.0

    def _ratio(self, tokens: Tokens) -> torch.Tensor:
        difference = tokens.log_probs - tokens.reference
        return difference.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()

    def sequence_losses(self, tokens: Tokens) -> torch.Tensor:
        """The clipped surrogate, summed over each sequence's trained tokens: [S]."""
        ratio = self._ratio(tokens)
        advantages = tokens.advantages[tokens.sample]
        clipped = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        return tokens.summed(-torch.minimum(ratio * advantages, clipped * advantages) * tokens.weights)

    def clipped(self, tokens: Tokens) -> torch.Tensor:
        """Tokens whose gradient the clip removed: [R]."""
        ratio = self._ratio(tokens).detach()
        advantages = tokens.advantages[tokens.sample]
        above = (ratio > 1.0 + self.clip_high) & (advantages > 0)
        below = (ratio < 1.0 - self.clip_low) & (advantages < 0)
        return (above | below) & (tokens.weights > 0)


def from_options(parameters: Mapping[str, float], options: Mapping[str, str]) -> Grpo:
    """Reads clip_low, clip_high, normalize_std, constant_tokens and aggregation; raises RequestError if wrong."""
    low, high = parameters.get("clip_low", 0.2), parameters.get("clip_high", 0.28)
    if not 0 < low <= 1:
        raise RequestError(f"algorithm.grpo.clip_low is {low}; it must be above 0 and at most 1.", field="clip_low")
    if not high > 0:
        raise RequestError(f"algorithm.grpo.clip_high is {high}; it must be above 0.", field="clip_high")
    aggregation = options.get("aggregation", "token_mean")
    if aggregation not in AGGREGATIONS:
        raise RequestError(
            f"algorithm.grpo.aggregation is {aggregation!r}; it must be one of {', '.join(AGGREGATIONS)}.",
            field="aggregation",
        )
    return Grpo(
        clip_low=low,
        clip_high=high,
        aggregation=aggregation,
        normalize_std=parameters.get("normalize_std", 1.0) != 0.0,
        constant_tokens=parameters.get("constant_tokens", 0.0),
    )
