"""detection_map: VLM-R1's reward for open-vocabulary detection (odLength): COCO mAP * min(1, gold / predicted boxes).

The factor is what makes boxes with invented labels, which mAP itself ignores, and mere guesses cost something.
"""

from dataclasses import dataclass

from crescendo.proto.v1.common_pb2 import VERDICT_CORRECT, VERDICT_WRONG
from crescendo.reward_service.scorers import coco
from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer
from crescendo.reward_service.scorers.boxes import gold_and_answer
from crescendo.reward_service.typed_options import option


@dataclass(frozen=True)
class DetectionMapOptions:
    """Options of detection_map."""

    thresholds: str = option(
        "coco",
        "coco: mean over IoU .50 to .95; 50: at .50 only, as a part of VLM-R1's code has it",
        choices=("coco", "50"),
    )
    length_penalty: bool = option(True, "multiply with min(1, gold / predicted boxes)")
    correct_from: float = option(0.5, "the verdict is correct from this value on", above=0, at_most=1)
    tag: str = option("answer", "tag with the boxes", pattern=r"[A-Za-z_][\w-]*")


def score(sample: Sample, options: DetectionMapOptions) -> Outcome:
    """mAP with its factor, 0 to 1; 1 where there is nothing to find and nothing was named."""
    read = gold_and_answer(sample, options.tag)
    if isinstance(read, Outcome):
        return read
    golds, boxes = read
    thresholds = coco.THRESHOLDS if options.thresholds == "coco" else coco.THRESHOLDS[:1]
    raw = coco.mean_average_precision(boxes, golds, thresholds) if golds or boxes else 1.0
    if options.length_penalty and boxes:
        raw *= min(1.0, len(golds) / len(boxes))
    verdict = VERDICT_CORRECT if raw >= options.correct_from else VERDICT_WRONG
    return Outcome(raw, verdict, f"{len(boxes)} boxes, {len(golds)} gold boxes")


SCORER = Scorer(
    name="detection_map",
    source="VLM-R1: odLength; COCO's evaluation (Lin et al., 2014) for the mean average precision",
    low=0.0,
    high=1.0,
    options=DetectionMapOptions,
    score=score,
)
