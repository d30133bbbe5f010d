"""reward_model_answer: reads what a remote reward model answered. Internal: the reward process sends it such items.

The item's response is the answer's body as it came, and hostile: the policy wrote part of what the model read. A
verdict is a JSON object in the text with the nonce that this request was given (metadata.nonce), which the policy could
not know: a verdict that the model merely quotes has no such nonce. Objects that contradict each other are no verdict.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from crescendo.proto.v1.common_pb2 import VERDICT_CORRECT, VERDICT_UNSPECIFIED, VERDICT_WRONG
from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer, unparsable
from crescendo.reward_service.scorers.reward_model import BOUND
from crescendo.reward_service.scorers.structured import NotReadableError, nesting
from crescendo.reward_service.typed_options import option

MAX_CHARACTERS = 4 << 20
MAX_DEPTH = 64
MAX_OBJECT = 2000
MAX_TRIES = 200


@dataclass(frozen=True)
class AnswerOptions:
    """Options of reward_model_answer."""

    body: str = option(
        "text",
        "what the body is: an OpenAI-style chat completion, a pooling answer as vLLM gives it, or the text itself",
        choices=("chat", "pooling", "text"),
    )


def score(sample: Sample, options: AnswerOptions) -> Outcome:
    """The verdict (1 or 0) or the score; unparsable if there is none."""
    try:
        if options.body == "pooling":
            return Outcome(_number(_pooled(_envelope(sample.text))))
        text = _message(_envelope(sample.text)) if options.body == "chat" else sample.text
        return read_verdict(text, sample.metadata.get("nonce", ""))
    except NotReadableError as error:
        return unparsable(str(error))


def read_verdict(text: str, nonce: str) -> Outcome:
    """The verdict in a model's text; raises NotReadableError."""
    found = [_outcome(verdict) for verdict in _objects(text) if nonce and verdict.get("nonce") == nonce]
    if not found:
        raise NotReadableError("the text has no JSON verdict with this request's nonce")
    if any((other.raw, other.verdict) != (found[0].raw, found[0].verdict) for other in found):
        raise NotReadableError("the text has verdicts that contradict each other")
    return found[0]


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The flat JSON objects of a text, the last first; only so many places are tried."""
    end = len(text)
    for _ in range(MAX_TRIES):
        start = text.rfind("{", 0, end)
        if start < 0:
            return
        stop = text.find("}", start, start + MAX_OBJECT)
        end = start
        if stop < 0:
            continue
        try:
            value = json.loads(text[start : stop + 1])
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _outcome(verdict: dict[str, Any]) -> Outcome:
    correct, value = verdict.get("correct"), verdict.get("score")
    if isinstance(correct, bool) and value is None:
        return Outcome(float(correct), VERDICT_CORRECT if correct else VERDICT_WRONG)
    if correct is None:
        return Outcome(_number(value), VERDICT_UNSPECIFIED)
    raise NotReadableError("a verdict has either correct (true or false) or score (a number)")


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or abs(value) > BOUND:
        raise NotReadableError(f"the score is not a number between -{BOUND:g} and {BOUND:g}")
    return float(value)


def _envelope(text: str) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise NotReadableError(f"the answer has {len(text)} characters; at most {MAX_CHARACTERS}")
    try:
        value = json.loads(text)
    except RecursionError:
        raise NotReadableError(f"the answer is nested deeper than JSON may be (depth {nesting(text)})") from None
    except ValueError as error:
        raise NotReadableError(f"the answer is not JSON: {error}") from None
    return value


def _message(envelope: Any) -> str:
    try:
        choice = envelope["choices"][0]
        content = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise NotReadableError("the answer is no chat completion") from None
    if choice.get("finish_reason") == "length":
        raise NotReadableError("the model was cut before its verdict; raise max_tokens")
    if not isinstance(content, str):
        raise NotReadableError("the answer's content is not text")
    return content


def _pooled(envelope: Any) -> Any:
    try:
        data = envelope["data"][0]["data"]
    except (KeyError, IndexError, TypeError):
        raise NotReadableError("the answer is no pooling answer") from None
    while isinstance(data, list) and data:
        data = data[-1]
    return data


SCORER = Scorer(
    name="reward_model_answer",
    source="Kimi k1.5, section 2.3.5: reasoning, then a verdict as JSON",
    low=-BOUND,
    high=BOUND,
    options=AnswerOptions,
    score=score,
)
