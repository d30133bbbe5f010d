"""The scorers by name, and reward chains made of them.

A new scorer is one file and one line here; then `python -m crescendo.reward_service.scorers.catalogue` writes
docs/rewards.md and the catalogue by which a run file is checked.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from crescendo.common.errors import RequestError
from crescendo.proto.v1.reward_pb2 import ScorerSpec
from crescendo.reward_service.scorers import (
    adapt_think,
    box_confidence,
    box_iou,
    box_reference,
    class_label,
    code,
    code_r1,
    cosine_length,
    deepscaler,
    detection_map,
    detection_weighted,
    e2h_gate,
    exact_match,
    format,
    function_call,
    json_schema,
    language_consistency,
    length_k15,
    math_answer,
    multiple_choice,
    r1_zero,
    reasoning_gym,
    repetition_penalty,
    reward_model,
    reward_model_answer,
    soft_overlong,
)
from crescendo.reward_service.scorers.base import GroupScorer, RemoteScorer, SandboxScorer, Scorer
from crescendo.reward_service.typed_options import parse_options

SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        math_answer.SCORER,
        exact_match.SCORER,
        multiple_choice.SCORER,
        format.SCORER,
        reasoning_gym.SCORER,
        deepscaler.SCORER,
        r1_zero.SCORER,
        e2h_gate.SCORER,
        adapt_think.SCORER,
        language_consistency.SCORER,
        repetition_penalty.SCORER,
        box_iou.SCORER,
        box_confidence.SCORER,
        class_label.SCORER,
        box_reference.SCORER,
        detection_map.SCORER,
        detection_weighted.SCORER,
        json_schema.SCORER,
        function_call.SCORER,
        reward_model_answer.SCORER,
    )
}
INTERNAL = frozenset({reward_model_answer.SCORER.name})  # the service puts these into chains, a run file may not
SANDBOX_SCORERS: dict[str, SandboxScorer] = {scorer.name: scorer for scorer in (code.SCORER, code_r1.SCORER)}
WORKER_SCORERS: dict[str, Scorer | SandboxScorer] = {**SCORERS, **SANDBOX_SCORERS}  # those that workers apply
REMOTE_SCORERS: dict[str, RemoteScorer] = {scorer.name: scorer for scorer in (reward_model.SCORER,)}
GROUP_SCORERS: dict[str, GroupScorer] = {
    scorer.name: scorer for scorer in (length_k15.SCORER, cosine_length.SCORER, soft_overlong.SCORER)
}

S = TypeVar("S", Scorer | SandboxScorer, GroupScorer, Scorer | SandboxScorer | RemoteScorer)


def resolve_chain(chain: Iterable[ScorerSpec]) -> list[tuple[Scorer | SandboxScorer, Any]]:
    """Scorers of a chain with their options, as a worker applies them; raises RequestError as `check_chain` does."""
    return _resolve(chain, WORKER_SCORERS, "scorer")


def resolve_group_chain(chain: Iterable[ScorerSpec]) -> list[tuple[GroupScorer, Any]]:
    """Group scorers of a chain with their options; raises RequestError as `check_group_chain` does."""
    return _resolve(chain, GROUP_SCORERS, "group scorer")


def check_chain(chain: Iterable[ScorerSpec]) -> None:
    """Raises RequestError naming the first scorer, weight or option that is wrong, or an empty chain."""
    open_to_callers: dict[str, Scorer | SandboxScorer | RemoteScorer] = {
        **{name: scorer for name, scorer in SCORERS.items() if name not in INTERNAL},
        **SANDBOX_SCORERS,
        **REMOTE_SCORERS,
    }
    _resolve(chain, open_to_callers, "scorer")


def check_group_chain(chain: Iterable[ScorerSpec]) -> None:
    """Likewise, for group scorers."""
    resolve_group_chain(chain)


def _resolve(chain: Iterable[ScorerSpec], registry: Mapping[str, S], kind: str) -> list[tuple[S, Any]]:
    resolved: list[tuple[S, Any]] = []
    for spec in chain:
        scorer = registry.get(spec.name)
        if scorer is None:
            near = difflib.get_close_matches(spec.name, registry, n=1)
            raise RequestError(
                f"there is no {kind} {spec.name!r}.",
                field="scorer",
                fix=f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(sorted(registry))}.",
            )
        if not abs(spec.weight) < float("inf"):
            raise RequestError(f"the weight of {spec.name} is {spec.weight}; it must be finite.", field="weight")
        resolved.append((scorer, parse_options(scorer.options, spec.options, spec.name)))
    if not resolved:
        raise RequestError(f"the reward chain is empty; it needs at least one {kind}.", field="chain")
    return resolved
