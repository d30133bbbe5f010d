"""Applies a chain of group scorers to one group."""

from collections.abc import Sequence
from typing import Any

from crescendo.proto.v1 import common_pb2, reward_pb2
from crescendo.reward_service.scorers.base import GroupScorer


def score_group(
    members: Sequence[reward_pb2.GroupMember],
    chain: Sequence[tuple[GroupScorer, Any]],
    weights: Sequence[float],
) -> list[list[common_pb2.RewardComponent]]:
    """Components of each member, one a scorer. weights: one a scorer."""
    components: list[list[common_pb2.RewardComponent]] = [[] for _ in members]
    for (scorer, options), weight in zip(chain, weights, strict=True):
        for place, outcome in enumerate(scorer.score(members, options)):
            components[place].append(
                common_pb2.RewardComponent(
                    name=scorer.name,
                    raw=outcome.raw,
                    weight=weight,
                    verdict=outcome.verdict,
                    detail=outcome.detail,
                )
            )
    return components
