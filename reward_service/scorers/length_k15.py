"""length_k15: Kimi k1.5's length reward over the samples of one prompt. Numbers only."""

from collections.abc import Sequence

from crescendo.proto.v1.reward_pb2 import GroupMember
from crescendo.reward_service.scorers.base import GroupScorer, NoOptions, Outcome


def score(members: Sequence[GroupMember], options: NoOptions) -> list[Outcome]:
    """With lambda = 0.5 - (len - min_len) / (max_len - min_len): lambda if correct, min(0, lambda) if wrong.

    min_len and max_len are over the group. If they are equal every length reward is 0 (the length reward, not
    the total). The warm-up, without a penalty at first, is the weight's business: the link's
    from_iteration, or a stage's reward_weights.
    """
    del options
    lengths = [member.num_tokens for member in members]
    if not lengths:
        return []
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [Outcome(0.0, detail="all lengths are equal") for _ in members]
    span = longest - shortest
    outcomes = []
    for member in members:
        value = 0.5 - (member.num_tokens - shortest) / span
        outcomes.append(Outcome(value if member.correct else min(0.0, value)))
    return outcomes


SCORER = GroupScorer(
    name="length_k15",
    source="Kimi k1.5 (arXiv 2501.12599), section 2.3.3",
    low=-0.5,
    high=0.5,
    options=NoOptions,
    score=score,
)
