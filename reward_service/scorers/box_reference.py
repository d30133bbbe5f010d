"""box_reference: VLM-R1's reward for referring expressions: the overlap of the one box named with the gold one.

The box is rescaled from the model's input size to the image's where metadata has both (image_width, image_height,
input_width, input_height). A response that names no box, or more than one, scores 0.
"""

from dataclasses import dataclass

from crescendo.proto.v1.common_pb2 import VERDICT_CORRECT, VERDICT_WRONG
from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer, unparsable, unsupported
from crescendo.reward_service.scorers.boxes import iou, read_answer_boxes, read_gold_boxes
from crescendo.reward_service.scorers.structured import NotReadableError
from crescendo.reward_service.typed_options import option


@dataclass(frozen=True)
class BoxReferenceOptions:
    """Options of box_reference."""

    correct_from: float = option(
        0.5, "the verdict is correct from this overlap on", above=0, at_most=1, source="accuracy at IoU 0.5 in RefCOCO"
    )
    tag: str = option("answer", "tag with the box", pattern=r"[A-Za-z_][\w-]*")


def score(sample: Sample, options: BoxReferenceOptions) -> Outcome:
    """IoU with the gold box, the best where several gold answers name one each."""
    golds = read_gold_boxes(sample)
    if not golds:
        return unsupported("the gold answer is not a box")
    try:
        boxes = read_answer_boxes(sample, options.tag)
    except NotReadableError as error:
        return unparsable(str(error))
    if len(boxes) != 1:
        return unparsable(f"the answer names {len(boxes)} boxes; it must name one")
    raw = max(iou(boxes[0], gold) for gold in golds)
    return Outcome(raw, VERDICT_CORRECT if raw >= options.correct_from else VERDICT_WRONG, f"IoU {raw:.3f}")


SCORER = Scorer(
    name="box_reference",
    source="VLM-R1: its REC accuracy reward (soft IoU)",
    low=0.0,
    high=1.0,
    options=BoxReferenceOptions,
    score=score,
)
