"""Mean average precision as COCO's evaluation defines it, for one image. Pure.

For each label that the gold boxes have, and each IoU threshold: boxes by falling confidence (stable), the best 100;
each takes the best gold box that is left and overlaps at least by the threshold. Precision over recall, made
non-increasing from the right, is read at recalls 0, .01, ..., 1 and averaged. The result is the mean over thresholds
.50, .55, ..., .95 and labels. Boxes with a label that no gold box has do not count, as in COCO.
"""

from bisect import bisect_left
from collections.abc import Sequence

from crescendo.reward_service.scorers.boxes import Box, iou

# Computed as numpy.linspace does in COCO's code, so that equal recalls compare alike.
THRESHOLDS = (*(0.5 + step * ((0.95 - 0.5) / 9) for step in range(9)), 0.95)
RECALLS = tuple(step * 0.01 for step in range(101))
MAX_DETECTIONS = 100
_NEARLY = 1e-10


def mean_average_precision(
    boxes: Sequence[Box], golds: Sequence[Box], thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """mAP, 0 to 1; 0 if there are no gold boxes."""
    labels = sorted({gold.label for gold in golds})
    values = [
        average_precision(
            [box for box in boxes if box.label == label], [gold for gold in golds if gold.label == label], threshold
        )
        for label in labels
        for threshold in thresholds
    ]
    return sum(values) / len(values) if values else 0.0


def average_precision(boxes: Sequence[Box], golds: Sequence[Box], threshold: float) -> float:
    """AP of one label at one threshold, by 101-point interpolation."""
    if not golds:
        return 0.0
    ranked = sorted(boxes, key=lambda box: -box.confidence)[:MAX_DETECTIONS]
    recalls, precisions = _curve(_hits(ranked, golds, threshold), len(golds))
    for place in range(len(precisions) - 1, 0, -1):
        precisions[place - 1] = max(precisions[place - 1], precisions[place])
    read = (bisect_left(recalls, recall) for recall in RECALLS)
    return sum(precisions[place] for place in read if place < len(precisions)) / len(RECALLS)


def _hits(ranked: Sequence[Box], golds: Sequence[Box], threshold: float) -> list[bool]:
    left = list(golds)
    hits = []
    for box in ranked:
        overlaps = [iou(box, gold) for gold in left]
        best = max(overlaps, default=-1.0)
        # The least overlap that counts is just below 1 at most, as in COCO's code.
        is_hit = best >= min(threshold, 1 - _NEARLY)
        if is_hit:
            # Of equals COCO takes the last.
            del left[len(overlaps) - 1 - overlaps[::-1].index(best)]
        hits.append(is_hit)
    return hits


def _curve(hits: Sequence[bool], num_golds: int) -> tuple[list[float], list[float]]:
    recalls, precisions = [], []
    found = 0
    for rank, is_hit in enumerate(hits, 1):
        found += is_hit
        recalls.append(found / num_golds)
        precisions.append(found / rank)
    return recalls, precisions
