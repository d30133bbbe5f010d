"""r1_zero: DeepSeek-R1-Zero's reward, accuracy plus format with equal weights, in one component.

The same sum comes from a chain of `math_answer` and `format`, which keeps the two apart in metrics; this one is for
comparing with the paper, whose reward is one number.
"""

from dataclasses import dataclass

from crescendo.reward_service.scorers import format, math_answer
from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer
from crescendo.reward_service.typed_options import option


@dataclass(frozen=True)
class R1ZeroOptions:
    """Options of r1_zero."""

    format_weight: float = option(1.0, "weight of the format reward; accuracy has 1", at_least=0, at_most=10)
    prefilled: bool = option(False, "the prompt ends with <think>, so the response lacks it")
    extract: str = option(
        "any", "where math_answer looks for the answer", choices=("boxed", "tagged", "last_number", "any")
    )


def score(sample: Sample, options: R1ZeroOptions) -> Outcome:
    """Accuracy (0 or 1) plus format_weight times format (0 or 1); the verdict is accuracy's."""
    accuracy = math_answer.score(sample, math_answer.MathOptions(extract=options.extract))
    form = format.score(sample, format.FormatOptions(prefilled=options.prefilled))
    detail = f"accuracy {accuracy.raw:g}, format {form.raw:g}; {form.detail or accuracy.detail}"
    return Outcome(accuracy.raw + options.format_weight * form.raw, accuracy.verdict, detail)


SCORER = Scorer(
    name="r1_zero",
    source="DeepSeek-R1, section 2.2.2: accuracy and format; equal weights in the later text (Nature)",
    low=0.0,
    high=11.0,
    options=R1ZeroOptions,
    score=score,
    preload=math_answer.SCORER.preload,
)
