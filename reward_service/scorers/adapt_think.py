"""adapt_think: AdaptThink's advantage terms: a bonus for answering without thinking, against a reference's mean.

    A(x, y) = 1(y_1 = </think>) * delta + R(x, y) - mean R_ref(x)

mean R_ref is the mean reward of K = 16 responses that the reference model gave to the prompt beforehand: the data
set brings it as metadata. No group mean and no standard deviation belong on top of it. R is 1 where the answer is right
and the response has one closing tag and no further opening one (as the authors' code requires), else 0.
"""

import math
from dataclasses import dataclass, replace

from crescendo.reward_service.scorers import math_answer
from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer, judged, unsupported
from crescendo.reward_service.scorers.spans import CLOSE, OPEN
from crescendo.reward_service.typed_options import option


@dataclass(frozen=True)
class AdaptThinkOptions:
    """Options of adapt_think."""

    delta: float = option(0.05, "bonus for not thinking", at_least=0, at_most=1, source="AdaptThink: 0.05")
    reference: str = option(
        "reference_reward", "metadata field with the reference's mean reward, 0 to 1", pattern=r"[A-Za-z_][\w.-]*"
    )
    extract: str = option(
        "any", "where the answer is, in what follows the thinking", choices=("boxed", "tagged", "last_number", "any")
    )


def score(sample: Sample, options: AdaptThinkOptions) -> Outcome:
    """The advantage's terms as one value, -1 to 1 + delta; the verdict is that on the answer."""
    reference = reference_mean(sample.metadata.get(options.reference, ""))
    if reference is None:
        return unsupported(f"metadata.{options.reference} is not a number from 0 to 1")
    answer = _judge(sample, options)
    no_thinking = is_without_thinking(sample)
    raw = options.delta * no_thinking + answer.raw - reference
    mode = "no thinking" if no_thinking else "thinking"
    return Outcome(raw, answer.verdict, f"{mode}, R {answer.raw:g}, reference {reference:g}")


def is_without_thinking(sample: Sample) -> bool:
    """Whether y_1 is the closing tag; a prompt that already ends with it forced that mode."""
    return sample.text.startswith(CLOSE) or sample.prompt.rstrip().endswith(CLOSE)


def reference_mean(text: str) -> float | None:
    """The metadata's number, if it is one from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0.0 <= value <= 1.0 else None


def _judge(sample: Sample, options: AdaptThinkOptions) -> Outcome:
    text = sample.text
    if sample.prompt.rstrip().endswith(CLOSE):
        text = CLOSE + text
    if text.count(CLOSE) != 1 or OPEN in text:
        return judged(False, f"{CLOSE} occurs {text.count(CLOSE)} times, {OPEN} {text.count(OPEN)} times")
    answer = text.partition(CLOSE)[2]
    return math_answer.score(replace(sample, text=answer), math_answer.MathOptions(extract=options.extract))


SCORER = Scorer(
    name="adapt_think",
    source="AdaptThink: its objective, and the authors' code for what counts as correct",
    low=-1.0,
    high=2.0,
    options=AdaptThinkOptions,
    score=score,
    preload=math_answer.SCORER.preload,
)
