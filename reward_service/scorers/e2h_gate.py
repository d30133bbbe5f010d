"""e2h_gate: E2H Reasoner's reward: the form first, and the answer only where the form is right."""

from dataclasses import dataclass, replace

from crescendo.reward_service.scorers import exact_match, format, math_answer
from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer
from crescendo.reward_service.scorers.extract import last_tagged
from crescendo.reward_service.typed_options import option


@dataclass(frozen=True)
class GateOptions:
    """Options of e2h_gate."""

    tags: str = option(
        "think,answer",
        "tags in order, comma-separated; the answer is in the last",
        pattern=r"[A-Za-z_][\w-]*(,[A-Za-z_][\w-]*)*",
    )
    prefilled: bool = option(False, "the prompt ends with the first opening tag, so the response lacks it")
    enclosed: bool = option(True, "nothing but whitespace stands outside the tags")
    judge: str = option("math_answer", "what judges the answer", choices=("math_answer", "exact_match"))
    format_value: float = option(
        0.0, "value of a response with the right form and a wrong answer; the paper names none", at_least=0, at_most=1
    )


def score(sample: Sample, options: GateOptions) -> Outcome:
    """0 without the form; else the judge's 1, or format_value where the answer is wrong."""
    form = format.score(
        sample, format.FormatOptions(tags=options.tags, prefilled=options.prefilled, enclosed=options.enclosed)
    )
    if not form.raw:
        return form
    tag = options.tags.rsplit(",", 1)[-1]
    if options.judge == "exact_match":
        answer = replace(sample, text=last_tagged(sample.text, tag) or "")
        outcome = exact_match.score(answer, exact_match.ExactMatchOptions(normalized=True))
    else:
        outcome = math_answer.score(sample, math_answer.MathOptions(extract="tagged", tag=tag))
    return replace(outcome, raw=max(outcome.raw, options.format_value))


SCORER = Scorer(
    name="e2h_gate",
    source="E2H Reasoner: its training code, reward function; correctness counts only if the format does",
    low=0.0,
    high=1.0,
    options=GateOptions,
    score=score,
    preload=math_answer.SCORER.preload,
)
