"""Scores of all context-parallel ranks, joined in the order of the micro-batch.

Each rank scores its own positions; objectives need whole sequences. So every rank gets all log-probabilities and
computes the same loss, and in the backward pass each takes the gradient of its own.
"""

from typing import Any

import torch
import torch.distributed as dist

from crescendo.trainer.megatron.parallel import Layout
from crescendo.trainer.packing import MicroBatch, context_part


class _Joined(torch.autograd.Function):
    """own: [r] of R scored tokens; places: for each context rank which of the R its tokens are."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, places: list[torch.Tensor], at: Layout) -> torch.Tensor:
        ctx.mine = places[at.context_rank]
        longest = max(1, *(len(each) for each in places))
        padded = torch.nn.functional.pad(own, (0, longest - len(own)))
        everyone = own.new_empty(at.context_parallel * longest)
        dist.all_gather_single(everyone, padded, group=at.context_group)
        joined = own.new_empty(sum(len(each) for each in places))
        for share, place in zip(torch.split(everyone, longest), places, strict=True):
            joined[place] = share[: len(place)]
        return joined

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grads[0][ctx.mine], None, None


def joined_scores(
    log_probs: torch.Tensor, entropies: torch.Tensor, batch: MicroBatch, at: Layout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (with gradient) and entropies of all R scored tokens from this rank's."""
    parts = [context_part(batch, rank, at.context_parallel) for rank in range(at.context_parallel)]
    places = [torch.from_numpy(part.scored).to(at.device) for part in parts]
    joined: torch.Tensor = _Joined.apply(log_probs, places, at)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        rest: torch.Tensor = _Joined.apply(entropies, places, at)  # type: ignore[no-untyped-call]
    return joined, rest
