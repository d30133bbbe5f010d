"""Importance weights of tokens that older weights generated.

A trajectory may span iterations; its older segments were sampled from earlier weights. Their tokens train with
the truncated weight min(cap, pi_iterate / pi_behaviour) (Ionides, 2008; as in IMPALA's rho-bar, Espeholt et
al. 2018), or not at all. Tokens of the iterate itself have weight one: the difference between engine and
trainer is noise there, which attestation bounds.
"""

import torch

from crescendo.common.errors import RequestError

MODES = ("train", "mask")


def token_weights(
    iterate: torch.Tensor, behaviour: torch.Tensor, is_old: torch.Tensor, *, mode: str, cap: float
) -> torch.Tensor:
    """Weight of each token, [R], without gradient.

    iterate, behaviour: [R] log-probabilities under the iterate and as stored; is_old: [R] whether the token is
    of older weights. cap at or below 0 is refused, as is an unknown mode (RequestError).
    """
    if mode not in MODES:
        raise RequestError(f"old_segments is {mode!r}; it must be train or mask.", field="old_segments")
    if mode == "mask":
        return (~is_old).to(iterate.dtype)
    if not cap > 0:
        raise RequestError(f"importance_cap is {cap}; it must be above 0.", field="importance_cap")
    ratio = (iterate.detach() - behaviour).exp().clamp(max=cap)
    return torch.where(is_old, ratio, torch.ones_like(ratio))
