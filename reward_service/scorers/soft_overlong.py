"""soft_overlong: DAPO's soft overlong punishment: 0 up to a margin below the limit, then falling to -1. Numbers only.

With a stage's `truncated: zero` a cut response's whole reward is 0, this punishment included: use `truncated: score`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from crescendo.proto.v1.reward_pb2 import GroupMember
from crescendo.reward_service.scorers.base import GroupScorer, Outcome
from crescendo.reward_service.typed_options import option


@dataclass(frozen=True)
class OverlongOptions:
    """Options of soft_overlong."""

    max_tokens: int = option(
        0,
        "L_max, longest response; by default the stage's max_response_tokens",
        unit="tokens",
        at_least=1,
        filled_from="stage.max_response_tokens",
        source="DAPO: 20,480",
    )
    cache_tokens: int = option(
        4096,
        "L_cache, length of the stretch before L_max where the punishment grows",
        unit="tokens",
        at_least=1,
        not_above="max_tokens",
        source="DAPO: 4,096",
    )


def score(members: Sequence[GroupMember], options: OverlongOptions) -> list[Outcome]:
    """0 if len <= L_max - L_cache; (L_max - L_cache - len) / L_cache up to L_max; -1 above."""
    return [Outcome(punishment(member.num_tokens, options)) for member in members]


def punishment(num_tokens: int, options: OverlongOptions) -> float:
    """R_length of equation 13."""
    expected = options.max_tokens - options.cache_tokens
    if num_tokens <= expected:
        return 0.0
    return (expected - num_tokens) / options.cache_tokens if num_tokens <= options.max_tokens else -1.0


SCORER = GroupScorer(
    name="soft_overlong",
    source="DAPO (arXiv 2503.14476), equation 13",
    low=-1.0,
    high=0.0,
    options=OverlongOptions,
    score=score,
)
