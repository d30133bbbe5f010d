"""deepscaler: 1 only if the answer is right and both think tags are there.

As DeepScaleR trained (rllm at its release): 1 or 0, no -1, although its RewardConfig has one. Its function ran on
prompt and response together, so a `<think>` that the prompt ends with counts; the closing tag must be the
response's own. The answer is the last box between the first closing tag and the next, if there is one.
"""

from dataclasses import dataclass, replace

from crescendo.reward_service.scorers import math_answer
from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer, judged
from crescendo.reward_service.scorers.spans import CLOSE, OPEN
from crescendo.reward_service.typed_options import option


@dataclass(frozen=True)
class DeepScalerOptions:
    """Options of deepscaler."""

    extract: str = option(
        "boxed", "where the answer is, in what follows the thinking", choices=("boxed", "tagged", "last_number", "any")
    )
    prefilled: bool = option(False, "the chat template ends with <think>, so neither prompt text nor response has it")


def score(sample: Sample, options: DeepScalerOptions) -> Outcome:
    """math_answer's verdict on what follows the thinking; wrong without both tags."""
    if not options.prefilled and OPEN not in sample.text and OPEN not in sample.prompt:
        return judged(False, f"there is no {OPEN}")
    if CLOSE not in sample.text:
        return judged(False, f"there is no {CLOSE}")
    answer = sample.text.split(CLOSE, 2)[1]
    return math_answer.score(replace(sample, text=answer), math_answer.MathOptions(extract=options.extract))


SCORER = Scorer(
    name="deepscaler",
    source="DeepScaleR: the rllm repository at its release, the function wired to training",
    low=0.0,
    high=1.0,
    options=DeepScalerOptions,
    score=score,
    preload=math_answer.SCORER.preload,
)
