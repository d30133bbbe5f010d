"""Online mirror descent as Kimi k1.5 trains (arXiv 2501.12599, section 2.3.2, eq. 3).

The ascent direction of one response is (r - mean r) grad log pi - tau/2 grad (log pi / pi_i)^2, where pi_i is
the iterate that the iteration started from and log pi sums over the response. The square pulls towards the
iterate; at the iterate itself its gradient vanishes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from crescendo.common.errors import RequestError
from crescendo.trainer.algorithms.base import Tokens


@dataclass(frozen=True)
class MirrorDescent:
    """tau: weight of the squared log-ratio; aggregation: token_mean | sequence_mean."""

    tau: float
    aggregation: str = "token_mean"
    normalize_std: bool = False
    constant_tokens: float = 0.0

    def sequence_losses(self, tokens: Tokens) -> torch.Tensor:
        """-(A) sum_t w_t log pi_t + tau/2 (sum_t log pi_t / pi_i,t)^2, over trained tokens: [S]."""
        trained = (tokens.weights > 0).to(tokens.log_probs.dtype)
        gain = tokens.summed(tokens.weights * tokens.log_probs)
        log_ratio = tokens.summed(trained * (tokens.log_probs - tokens.reference))
        return -tokens.advantages * gain + 0.5 * self.tau * log_ratio.square()

    def clipped(self, tokens: Tokens) -> torch.Tensor:
        """Nothing is clipped."""
        return torch.zeros_like(tokens.weights, dtype=torch.bool)


def from_options(parameters: Mapping[str, float], options: Mapping[str, str]) -> MirrorDescent:
    """Reads `tau` and `aggregation`; raises RequestError for values that can't be right."""
    tau = parameters.get("tau", 1.0)
    aggregation = options.get("aggregation", "token_mean")
    if not tau > 0:
        raise RequestError(f"algorithm.mirror_descent.tau is {tau}; it must be above 0.", field="tau")
    if aggregation not in ("token_mean", "sequence_mean"):
        raise RequestError(
            f"algorithm.mirror_descent.aggregation is {aggregation!r}; it must be token_mean or sequence_mean.",
            field="aggregation",
        )
    return MirrorDescent(tau=tau, aggregation=aggregation)
