"""box_iou: Visual-RFT's overlap reward for detection: R_IoU = sum of IoUs / max(gold boxes, predicted boxes).

Duplicates are dropped; by falling confidence each box takes the best gold box that is left, if they overlap by more
than the threshold. Boxes without a match count as 0, so that guessing many costs. Visual-RFT's whole reward is a chain
of box_iou, box_confidence and format.
"""

from dataclasses import dataclass

from crescendo.proto.v1.common_pb2 import VERDICT_CORRECT, VERDICT_WRONG
from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer
from crescendo.reward_service.scorers.boxes import gold_and_answer, greedy_matches, without_duplicates
from crescendo.reward_service.typed_options import option


@dataclass(frozen=True)
class BoxIouOptions:
    """Options of box_iou."""

    threshold: float = option(0.5, "boxes that overlap no more do not match", at_least=0, at_most=1)
    correct_from: float = option(0.5, "the verdict is correct from this value on", above=0, at_most=1)
    tag: str = option("answer", "tag with the boxes", pattern=r"[A-Za-z_][\w-]*")


def score(sample: Sample, options: BoxIouOptions) -> Outcome:
    """R_IoU, 0 to 1; 1 where there is nothing to find and nothing was named."""
    read = gold_and_answer(sample, options.tag)
    if isinstance(read, Outcome):
        return read
    golds, boxes = read[0], without_duplicates(read[1])
    most = max(len(golds), len(boxes))
    matches = greedy_matches(boxes, golds, options.threshold)
    raw = sum(overlap for _, overlap in matches) / most if most else 1.0
    num_matched = sum(overlap > 0 for _, overlap in matches)
    verdict = VERDICT_CORRECT if raw >= options.correct_from else VERDICT_WRONG
    return Outcome(raw, verdict, f"{num_matched} of {len(boxes)} boxes match {len(golds)} gold boxes")


SCORER = Scorer(
    name="box_iou",
    source="Visual-RFT: R_IoU of its detection reward, from the released code",
    low=0.0,
    high=1.0,
    options=BoxIouOptions,
    score=score,
)
