"""box_confidence: Visual-RFT's confidence reward: the mean over boxes of what their confidences are worth.

A box that matches is worth its confidence, one that doesn't 1 - confidence. Matching is as in box_iou.
"""

from dataclasses import dataclass

from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer
from crescendo.reward_service.scorers.boxes import gold_and_answer, greedy_matches, without_duplicates
from crescendo.reward_service.typed_options import option


@dataclass(frozen=True)
class BoxConfidenceOptions:
    """Options of box_confidence."""

    threshold: float = option(0.5, "boxes that overlap no more do not match", at_least=0, at_most=1)
    tag: str = option("answer", "tag with the boxes", pattern=r"[A-Za-z_][\w-]*")


def score(sample: Sample, options: BoxConfidenceOptions) -> Outcome:
    """Mean over predicted boxes, 0 to 1; without any: 1 where there is nothing to find, else 0."""
    read = gold_and_answer(sample, options.tag)
    if isinstance(read, Outcome):
        return read
    golds, boxes = read[0], without_duplicates(read[1])
    if not boxes:
        return Outcome(0.0 if golds else 1.0, detail=f"no boxes, {len(golds)} gold boxes")
    matches = greedy_matches(boxes, golds, options.threshold)
    values = [box.confidence if overlap > 0 else 1.0 - box.confidence for box, overlap in matches]
    return Outcome(sum(values) / len(values), detail=f"{len(boxes)} boxes")


SCORER = Scorer(
    name="box_confidence",
    source="Visual-RFT: R_conf of its detection reward, from the released code",
    low=0.0,
    high=1.0,
    options=BoxConfidenceOptions,
    score=score,
)
