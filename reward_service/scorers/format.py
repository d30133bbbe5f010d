"""format: what the template asks for: tags, each once and in order, or one boxed answer."""

from dataclasses import dataclass

from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer, judged
from crescendo.reward_service.scorers.extract import last_boxed
from crescendo.reward_service.typed_options import option


@dataclass(frozen=True)
class FormatOptions:
    """Options of format. tags, prefilled and enclosed are for the style `tags`."""

    style: str = option("tags", "tags, or boxed: exactly one \\boxed{...}, closed and not empty", pattern=r"tags|boxed")
    tags: str = option("think,answer", "tags in order, comma-separated", pattern=r"[A-Za-z_][\w-]*(,[A-Za-z_][\w-]*)*")
    prefilled: bool = option(False, "the prompt ends with the first opening tag, so the response lacks it")
    enclosed: bool = option(True, "nothing but whitespace stands outside the tags")


def score(sample: Sample, options: FormatOptions) -> Outcome:
    """1 if the response has the style's form, else 0 with the reason."""
    return _boxed(sample) if options.style == "boxed" else _tagged(sample, options)


def _boxed(sample: Sample) -> Outcome:
    count = sample.text.count("\\boxed")
    if count != 1:
        return judged(False, f"\\boxed occurs {count} times")
    content = last_boxed(sample.text)
    return judged(bool(content and content.strip()), "the box is open or empty")


def _tagged(sample: Sample, options: FormatOptions) -> Outcome:
    tags = options.tags.split(",")
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    text = marks[0] + sample.text if options.prefilled else sample.text
    at = 0
    for place, mark in enumerate(marks):
        count = text.count(mark)
        if count != 1:
            return judged(False, f"{mark} occurs {count} times")
        found = text.find(mark, at)
        if found < 0:
            return judged(False, f"{mark} is out of order")
        is_outside = place % 2 == 0
        if options.enclosed and is_outside and text[at:found].strip():
            return judged(False, f"there is text before {mark}")
        at = found + len(mark)
    if options.enclosed and text[at:].strip():
        return judged(False, f"there is text after {marks[-1]}")
    return judged(True)


SCORER = Scorer(
    name="format",
    source="R1-Zero, section 2.2.2: thinking process between think tags; template of table 1",
    low=0.0,
    high=1.0,
    options=FormatOptions,
    score=score,
)
