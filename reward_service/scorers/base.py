"""What a scorer is: a name, a documented range, typed options and a function.

A scorer module may be imported by the trusted half (for names, options and ranges), so whatever reads model
text with a library imports that library inside its function.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crescendo.proto.v1 import common_pb2, reward_pb2
from crescendo.reward_service.sandbox import protocol


@dataclass(frozen=True)
class Sample:
    """One response as a scorer sees it.

    text: decoded, with U+FFFD where it was not UTF-8; token_ids: packed little-endian int32, empty unless the
    scorer reads tokens.
    """

    text: str
    gold_answers: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""
    num_tokens: int = 0
    finish_reason: int = common_pb2.FINISH_REASON_UNSPECIFIED
    token_ids: bytes = b""


@dataclass(frozen=True)
class Outcome:
    """What a scorer found. verdict: VERDICT_UNSPECIFIED where a value is no judgement (a length, a share)."""

    raw: float
    verdict: common_pb2.Verdict.ValueType = common_pb2.VERDICT_UNSPECIFIED
    detail: str = ""


@dataclass(frozen=True)
class NoOptions:
    """For scorers that take none."""


@dataclass(frozen=True)
class Scorer:
    """A scorer of single responses.

    low, high: bounds of the raw value; an item whose worker was killed gets `low`. source: where the rule is
    from. score(sample, options) may raise: the worker turns that into VERDICT_SANDBOX_ERROR. preload: modules
    that the zygote imports once, so that workers have them when forked. reads_tokens: it wants Sample.token_ids.
    """

    name: str
    source: str
    low: float
    high: float
    options: type[Any]
    score: Callable[[Sample, Any], Outcome]
    preload: tuple[str, ...] = ()
    reads_tokens: bool = False


@dataclass(frozen=True)
class SandboxScorer:
    """A scorer that has programs run, as `code` does.

    step(sample, options, ended) is pure and runs in a confined worker, as `Scorer.score` does: it returns an Outcome,
    or the programs to run next. The executor's main process runs those in the sandbox, without looking into them, and
    asks a worker again with all outcomes so far in order (`ended`), until there is an Outcome. Answers depend on the
    arguments only, so that any worker can take any step. max_steps bounds the rounds; an item that needs more, like
    one whose worker was killed, gets `low`.
    """

    name: str
    source: str
    low: float
    high: float
    options: type[Any]
    step: Callable[[Sample, Any, Sequence[protocol.Outcome]], Outcome | Sequence[protocol.Program]]
    max_steps: int = 16
    preload: tuple[str, ...] = ()


@dataclass(frozen=True)
class RemoteScorer:
    """A scorer that asks a reward model over the network, which the reward process does (reward_models/).

    What the model answers is read by the internal scorer `reward_model_answer`, in a confined worker.
    """

    name: str
    source: str
    low: float
    high: float
    options: type[Any]


@dataclass(frozen=True)
class GroupScorer:
    """A scorer of whole groups, from numbers only: score(members, options) gives one outcome a member.

    Numbers only means that it runs in the reward process, and that it sees lengths and verdicts, never text.
    """

    name: str
    source: str
    low: float
    high: float
    options: type[Any]
    score: Callable[[Sequence[reward_pb2.GroupMember], Any], list[Outcome]]


def judged(correct: bool, detail: str = "") -> Outcome:
    """1 and correct, or 0 and wrong."""
    verdict = common_pb2.VERDICT_CORRECT if correct else common_pb2.VERDICT_WRONG
    return Outcome(float(correct), verdict, detail)


def unparsable(detail: str) -> Outcome:
    """No answer was found in the response."""
    return Outcome(0.0, common_pb2.VERDICT_UNPARSABLE, detail)


def unsupported(detail: str) -> Outcome:
    """The data, not the response, is at fault: nothing to compare with."""
    return Outcome(0.0, common_pb2.VERDICT_UNSUPPORTED, detail)
