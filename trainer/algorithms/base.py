"""The seam of the policy-gradient objectives: from log-probabilities to one loss a sequence.

An algorithm is a pure function of tensors; how sequence losses are averaged is the aggregation's business and
shared. Shapes: R scored tokens of a micro-batch, S its sequences.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from crescendo.common.errors import RequestError

AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_token_mean", "sequence_sum_constant")


@dataclass(frozen=True)
class Tokens:
    """What an objective sees of a micro-batch.

    log_probs: [R] under the weights being trained, with gradient; reference: [R] under the iterate; weights:
    [R] importance weight, 0 for tokens that do not train; sample: [R] index of the token's sequence;
    advantages: [S].
    """

    log_probs: torch.Tensor
    reference: torch.Tensor
    weights: torch.Tensor
    sample: torch.Tensor
    advantages: torch.Tensor

    def summed(self, per_token: torch.Tensor) -> torch.Tensor:
        """[R] to [S]: sums over the tokens of each sequence."""
        return per_token.new_zeros(len(self.advantages)).index_add(0, self.sample, per_token)


class Objective(Protocol):
    """One algorithm with its parameters."""

    @property
    def aggregation(self) -> str:
        """A name for `sequence_scale`."""
        ...

    @property
    def normalize_std(self) -> bool:
        """Whether advantages are divided by the group's standard deviation."""
        ...

    @property
    def constant_tokens(self) -> float:
        """The constant of sequence_sum_constant."""
        ...

    def sequence_losses(self, tokens: Tokens) -> torch.Tensor:
        """The loss of each sequence, a sum over its tokens: [S], to be minimized."""
        ...

    def clipped(self, tokens: Tokens) -> torch.Tensor:
        """Which tokens a trust region cuts off: [R] bool. For the clip fraction only."""
        ...


@dataclass(frozen=True)
class BatchSize:
    """Of a whole mini-batch, over all ranks: what averages divide by."""

    num_tokens: int
    num_sequences: int


def sequence_scale(
    aggregation: str, lengths: torch.Tensor, whole: BatchSize, *, constant_tokens: float = 0.0
) -> torch.Tensor:
    """The factor of each sequence's summed loss, [S]. lengths: [S] trained tokens of each sequence.

    token_mean: 1 / tokens of the mini-batch (DAPO, Yu et al. 2025; DeepScaleR); sequence_mean: 1 / sequences;
    sequence_token_mean: 1 / (sequences * own length) (GRPO, Shao et al. 2024, eq. 3); sequence_sum_constant:
    1 / (sequences * constant_tokens) (Dr. GRPO, Liu et al. 2025). Raises RequestError for another name.
    """
    if aggregation == "token_mean":
        return torch.full_like(lengths, 1.0 / max(1, whole.num_tokens), dtype=torch.float32)
    share = 1.0 / max(1, whole.num_sequences)
    if aggregation == "sequence_mean":
        return torch.full_like(lengths, share, dtype=torch.float32)
    if aggregation == "sequence_token_mean":
        return share / lengths.clamp(min=1).float()
    if aggregation == "sequence_sum_constant":
        if not constant_tokens > 0:
            raise RequestError(
                f"algorithm.parameters.constant_tokens is {constant_tokens}; sequence_sum_constant needs it above 0.",
                field="algorithm.parameters.constant_tokens",
                fix="Give the stage's max_response_tokens.",
            )
        return torch.full_like(lengths, share / constant_tokens, dtype=torch.float32)
    raise RequestError(
        f"algorithm.options.aggregation is {aggregation!r}; it must be one of {', '.join(AGGREGATIONS)}.",
        field="algorithm.options.aggregation",
    )
