"""exact_match: the text after a marker equals a gold answer, character by character or normalized."""

from dataclasses import dataclass

from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer, judged, unparsable, unsupported
from crescendo.reward_service.scorers.extract import after_last
from crescendo.reward_service.typed_options import option

MAX_SHOWN = 80


@dataclass(frozen=True)
class ExactMatchOptions:
    """Options of exact_match."""

    marker: str = option("", "the answer is what follows its last occurrence; empty: the whole response")
    strip: str = option("", "characters removed from both ends of the answer, besides whitespace")
    normalized: bool = option(False, "compare without regard to case and to runs of whitespace")


def score(sample: Sample, options: ExactMatchOptions) -> Outcome:
    """1 if the answer equals one of the gold answers, else 0; unparsable without the marker."""
    if not sample.gold_answers:
        return unsupported("there is no gold answer")
    answer = after_last(sample.text, options.marker)
    if answer is None:
        return unparsable(f"there is no {options.marker!r} in the response")
    found = _clean(answer, options)
    golds = {_clean(gold, options) for gold in sample.gold_answers}
    return judged(found in golds, f"answer {found[:MAX_SHOWN]!r}")


def _clean(text: str, options: ExactMatchOptions) -> str:
    text = _strip(text, options.strip)
    return " ".join(text.casefold().split()) if options.normalized else text


def _strip(text: str, characters: str) -> str:
    # str.strip takes the whitespace of its own only without an argument, so both alternate until neither bites.
    while (shorter := text.strip().strip(characters) if characters else text.strip()) != text:
        text = shorter
    return text


SCORER = Scorer(
    name="exact_match",
    source="string equality; the rule-based accuracy reward of R1-Zero, section 2.2.2",
    low=0.0,
    high=1.0,
    options=ExactMatchOptions,
    score=score,
)
