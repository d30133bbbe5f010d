"""class_label: Visual-RFT's classification reward: 1 if the answer is the label.

Spaces and underscores are removed and case is ignored, on both sides; then the two must be equal. (The released code
takes a substring in either direction for a match, so that an empty answer scores 1.)
"""

from dataclasses import dataclass

from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer, judged, unparsable, unsupported
from crescendo.reward_service.scorers.extract import last_tagged
from crescendo.reward_service.typed_options import option

MAX_SHOWN = 80


@dataclass(frozen=True)
class ClassLabelOptions:
    """Options of class_label."""

    tag: str = option("answer", "tag with the label", pattern=r"[A-Za-z_][\w-]*")


def score(sample: Sample, options: ClassLabelOptions) -> Outcome:
    """1 if the tag's content is one of the gold labels."""
    golds = {label for gold in sample.gold_answers if (label := plain_label(gold))}
    if not golds:
        return unsupported("there is no gold label")
    tagged = last_tagged(sample.text, options.tag)
    if tagged is None:
        return unparsable(f"there is no <{options.tag}>")
    answer = plain_label(tagged)
    return judged(answer in golds, f"answer {answer[:MAX_SHOWN]!r}")


def plain_label(text: str) -> str:
    """Without whitespace and underscores, case folded."""
    return "".join(text.replace("_", " ").split()).casefold()


SCORER = Scorer(
    name="class_label",
    source="Visual-RFT: its classification reward, less the substring match of the released code",
    low=0.0,
    high=1.0,
    options=ClassLabelOptions,
    score=score,
)
