"""The scorers by name, and reward chains made of them. A new scorer is one file and one line here."""

from collections.abc import Iterable
from typing import Any, TypeVar

from crescendo.common.errors import RequestError
from crescendo.proto.v1.reward_pb2 import ScorerSpec
from crescendo.reward_service.scorers import (
    exact_match,
    format,
    language_consistency,
    length_k15,
    math_answer,
    reasoning_gym,
)
from crescendo.reward_service.scorers.base import GroupScorer, Scorer
from crescendo.reward_service.typed_options import parse_options

SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        math_answer.SCORER,
        exact_match.SCORER,
        format.SCORER,
        reasoning_gym.SCORER,
        language_consistency.SCORER,
    )
}
GROUP_SCORERS: dict[str, GroupScorer] = {scorer.name: scorer for scorer in (length_k15.SCORER,)}

S = TypeVar("S", Scorer, GroupScorer)


def resolve_chain(chain: Iterable[ScorerSpec]) -> list[tuple[Scorer, Any]]:
    """Scorers of a chain with their options; raises RequestError as `check_chain` does."""
    return _resolve(chain, SCORERS, "scorer")


def resolve_group_chain(chain: Iterable[ScorerSpec]) -> list[tuple[GroupScorer, Any]]:
    """Group scorers of a chain with their options; raises RequestError as `check_group_chain` does."""
    return _resolve(chain, GROUP_SCORERS, "group scorer")


def check_chain(chain: Iterable[ScorerSpec]) -> None:
    """Raises RequestError naming the first scorer, weight or option that is wrong, or an empty chain."""
    resolve_chain(chain)


def check_group_chain(chain: Iterable[ScorerSpec]) -> None:
    """Likewise, for group scorers."""
    resolve_group_chain(chain)


def _resolve(chain: Iterable[ScorerSpec], registry: dict[str, S], kind: str) -> list[tuple[S, Any]]:
    resolved: list[tuple[S, Any]] = []
    for spec in chain:
        scorer = registry.get(spec.name)
        if scorer is None:
            raise RequestError(
                f"there is no {kind} {spec.name!r}.",
                field="scorer",
                fix=f"Choose one of {', '.join(sorted(registry))}.",
            )
        if not abs(spec.weight) < float("inf"):
            raise RequestError(f"the weight of {spec.name} is {spec.weight}; it must be finite.", field="weight")
        resolved.append((scorer, parse_options(scorer.options, spec.options, spec.name)))
    if not resolved:
        raise RequestError(f"the reward chain is empty; it needs at least one {kind}.", field="chain")
    return resolved
