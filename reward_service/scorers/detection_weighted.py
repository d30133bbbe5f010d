"""detection_weighted: VLM-R1's weighted detection score: 0.7 position + 0 label + 0.3 completeness.

With boxes matched greedily at IoU above 0.5: position is the mean IoU of the matches, label the share of matches with
the right label, completeness 1 - (share of gold boxes missed + share of predicted boxes without a match) / 2. Weights
are divided by their sum. The weights are the authors'; how the parts are counted is said here because their text
leaves it open: where nothing matches, position and label are 0.
"""

from dataclasses import dataclass

from crescendo.proto.v1.common_pb2 import VERDICT_CORRECT, VERDICT_WRONG
from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer
from crescendo.reward_service.scorers.boxes import Box, gold_and_answer, iou
from crescendo.reward_service.typed_options import option


@dataclass(frozen=True)
class DetectionWeightedOptions:
    """Options of detection_weighted."""

    position: float = option(0.7, "weight of position", above=0, at_most=10)
    label: float = option(0.0, "weight of label", at_least=0, at_most=10)
    completeness: float = option(0.3, "weight of completeness", at_least=0, at_most=10)
    threshold: float = option(0.5, "boxes that overlap no more do not match", at_least=0, at_most=1)
    correct_from: float = option(0.5, "the verdict is correct from this value on", above=0, at_most=1)
    tag: str = option("answer", "tag with the boxes", pattern=r"[A-Za-z_][\w-]*")


def score(sample: Sample, options: DetectionWeightedOptions) -> Outcome:
    """The weighted mean of the three parts, 0 to 1; 1 where there is nothing to find and nothing was named."""
    read = gold_and_answer(sample, options.tag)
    if isinstance(read, Outcome):
        return read
    golds, boxes = read
    if not golds or not boxes:
        raw = float(not golds and not boxes)
        return Outcome(raw, VERDICT_CORRECT if raw else VERDICT_WRONG, f"{len(boxes)} boxes, {len(golds)} gold boxes")
    matches = _matches(boxes, golds, options.threshold)
    position = sum(overlap for overlap, _ in matches) / len(matches) if matches else 0.0
    label = sum(is_same for _, is_same in matches) / len(matches) if matches else 0.0
    missed, invented = 1.0 - len(matches) / len(golds), 1.0 - len(matches) / len(boxes)
    parts = ((options.position, position), (options.label, label), (options.completeness, 1 - (missed + invented) / 2))
    raw = sum(weight * value for weight, value in parts) / sum(weight for weight, _ in parts)
    verdict = VERDICT_CORRECT if raw >= options.correct_from else VERDICT_WRONG
    return Outcome(min(1.0, raw), verdict, f"{len(matches)} of {len(boxes)} boxes match {len(golds)} gold boxes")


def _matches(boxes: list[Box], golds: list[Box], threshold: float) -> list[tuple[float, bool]]:
    """Overlap and equality of labels of each match, best overlaps first."""
    pairs = sorted(
        ((iou(box, gold), b, g) for b, box in enumerate(boxes) for g, gold in enumerate(golds)), reverse=True
    )
    used_boxes: set[int] = set()
    used_golds: set[int] = set()
    found = []
    for overlap, b, g in pairs:
        if overlap > threshold and b not in used_boxes and g not in used_golds:
            used_boxes.add(b)
            used_golds.add(g)
            found.append((overlap, boxes[b].label == golds[g].label))
    return found


SCORER = Scorer(
    name="detection_weighted",
    source="VLM-R1: the weights of its detection score; the parts as said above",
    low=0.0,
    high=1.0,
    options=DetectionWeightedOptions,
    score=score,
)
