"""cosine_length: the cosine reward of "Demystifying Long Chain-of-Thought": correctness and length in one curve.

    R = r_e                                                   if len + margin >= L_max
        r_L + (r_0 - r_L) / 2 * (1 + cos(pi * len / L_max))   else, (r_0, r_L) by correctness

Right answers: the shorter the better; wrong ones: the longer the better. It takes the place of the correctness reward:
give the judging link of the chain weight 0, which leaves its verdict. Whether an answer is right comes from that
verdict (VLM-R1's re-implementation takes every answer for right). Numbers only. With a stage's `truncated: zero` a cut
response's whole reward is 0, r_e included: use `truncated: score`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crescendo.proto.v1.common_pb2 import FINISH_REASON_LENGTH
from crescendo.proto.v1.reward_pb2 import GroupMember
from crescendo.reward_service.scorers.base import GroupScorer, Outcome
from crescendo.reward_service.typed_options import option

BOUND = 100.0


@dataclass(frozen=True)
class CosineOptions:
    """Options of cosine_length; the defaults are the paper's runs'."""

    max_tokens: int = option(
        0,
        "L_max, longest response; by default the stage's max_response_tokens",
        unit="tokens",
        at_least=1,
        filled_from="stage.max_response_tokens",
        source="the paper's runs: 14,336",
    )
    correct_short: float = option(2.0, "r_0 of a right answer, at length 0", at_least=-BOUND, at_most=BOUND)
    correct_long: float = option(1.0, "r_L of a right answer, at L_max", at_least=-BOUND, at_most=BOUND)
    wrong_short: float = option(-10.0, "r_0 of a wrong answer", at_least=-BOUND, at_most=BOUND)
    wrong_long: float = option(0.0, "r_L of a wrong answer", at_least=-BOUND, at_most=BOUND)
    overlong: float = option(-10.0, "r_e, of a response that reaches L_max", at_least=-BOUND, at_most=BOUND)
    margin_tokens: int = option(16, "so close to L_max a response counts as overlong", unit="tokens", at_least=0)


def score(members: Sequence[GroupMember], options: CosineOptions) -> list[Outcome]:
    """The curve's value for each member; r_e also for a response that the limit cut."""
    return [Outcome(cosine_reward(member, options)) for member in members]


def cosine_reward(member: GroupMember, options: CosineOptions) -> float:
    """R of one response."""
    cut = member.finish_reason == FINISH_REASON_LENGTH
    if cut or member.num_tokens + options.margin_tokens >= options.max_tokens:
        return options.overlong
    if member.correct:
        short, long = options.correct_short, options.correct_long
    else:
        short, long = options.wrong_short, options.wrong_long
    return long + 0.5 * (short - long) * (1.0 + math.cos(math.pi * member.num_tokens / options.max_tokens))


SCORER = GroupScorer(
    name="cosine_length",
    source="Demystifying Long Chain-of-Thought Reasoning (arXiv 2502.03373), section 4 and the authors' run scripts",
    low=-BOUND,
    high=BOUND,
    options=CosineOptions,
    score=score,
)
