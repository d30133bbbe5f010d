"""Boxes: reading them from a response or the data set, their overlap, and matching them.

A box is (x1, y1, x2, y2) in pixels, x2 > x1 and y2 > y1. Answers are JSON (or Python-style literals, as Visual-RFT's
prompt asks for): a box, a list of boxes, or a list of objects {"Position" | "bbox_2d" | "bbox": box, "Confidence" |
"confidence" | "score": 0..1, "label": text}.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crescendo.reward_service.scorers.base import Outcome, Sample, unparsable, unsupported
from crescendo.reward_service.scorers.structured import NotReadableError, answer_part, read_json

MAX_BOXES = 500
_POSITION_KEYS = ("bbox_2d", "position", "bbox", "box")
_CONFIDENCE_KEYS = ("confidence", "score")
_SIZES = ("image_width", "image_height", "input_width", "input_height")


@dataclass(frozen=True)
class Box:
    """A box with what is said about it. confidence: 1 where the answer names none."""

    x1: float
    y1: float
    x2: float
    y2: float
    confidence: float = 1.0
    label: str = ""

    @property
    def area(self) -> float:
        """Pixels."""
        return (self.x2 - self.x1) * (self.y2 - self.y1)


def iou(one: Box, other: Box) -> float:
    """Intersection over union, 0 to 1."""
    width = min(one.x2, other.x2) - max(one.x1, other.x1)
    height = min(one.y2, other.y2) - max(one.y1, other.y1)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    # Rounding may carry equal boxes above 1.
    return min(1.0, shared / (one.area + other.area - shared))


def read_answer_boxes(sample: Sample, tag: str = "answer") -> list[Box]:
    """The response's boxes, in pixels of the original image; raises NotReadableError if any of it is no box."""
    boxes = boxes_of(read_json(answer_part(sample.text, tag), python_literals=True))
    return rescale(boxes, sample.metadata)


def read_gold_boxes(sample: Sample) -> list[Box] | None:
    """The boxes of all gold answers together (each a box, or a list); None if there is none or one can't be read."""
    if not sample.gold_answers:
        return None
    try:
        return [box for text in sample.gold_answers for box in boxes_of(read_json(text, python_literals=True))]
    except NotReadableError:
        return None


def gold_and_answer(sample: Sample, tag: str) -> tuple[list[Box], list[Box]] | Outcome:
    """(gold boxes, the answer's boxes) of a detection; the outcome where one of the two cannot be read."""
    golds = read_gold_boxes(sample)
    if golds is None:
        return unsupported("the gold answer is not a list of boxes")
    try:
        return golds, read_answer_boxes(sample, tag)
    except NotReadableError as error:
        return unparsable(str(error))


def boxes_of(value: Any) -> list[Box]:
    """Boxes from a parsed value; raises NotReadableError naming the first that is none."""
    items = [value] if _is_position(value) or isinstance(value, dict) else value
    if not isinstance(items, list):
        raise NotReadableError("neither a box nor a list of boxes")
    if len(items) > MAX_BOXES:
        raise NotReadableError(f"{len(items)} boxes; at most {MAX_BOXES} are read")
    return [_box(item) for item in items]


def rescale(boxes: Sequence[Box], metadata: Mapping[str, str]) -> list[Box]:
    """From pixels of the model's input to those of the image, where metadata gives both sizes."""
    sizes = [_size(metadata.get(name, "")) for name in _SIZES]
    if not all(sizes):
        return list(boxes)
    width, height, input_width, input_height = sizes
    x, y = width / input_width, height / input_height
    return [
        Box(box.x1 * x, box.y1 * y, box.x2 * x, box.y2 * y, confidence=box.confidence, label=box.label) for box in boxes
    ]


def without_duplicates(boxes: Iterable[Box]) -> list[Box]:
    """The first of equal positions with equal labels, in order."""
    first: dict[tuple[float, float, float, float, str], Box] = {}
    for box in boxes:
        first.setdefault((box.x1, box.y1, box.x2, box.y2, box.label), box)
    return list(first.values())


def greedy_matches(boxes: Sequence[Box], golds: Sequence[Box], threshold: float) -> list[tuple[Box, float]]:
    """Each box with the overlap of its match, 0 without one: by falling confidence, each takes the best gold box that
    is left, if they overlap by more than the threshold."""
    left = list(golds)
    matches = []
    for box in sorted(boxes, key=lambda box: -box.confidence):
        overlaps = [iou(box, gold) for gold in left]
        best = max(overlaps, default=0.0)
        if best > threshold:
            del left[overlaps.index(best)]
        matches.append((box, best if best > threshold else 0.0))
    return matches


def _is_position(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 4
        and all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
    )


def _box(item: Any) -> Box:
    if _is_position(item):
        return _checked(item, 1.0, "")
    if not isinstance(item, dict):
        raise NotReadableError("an item is neither a box nor an object with one")
    fields = {str(key).lower(): value for key, value in item.items()}
    position = next((fields[key] for key in _POSITION_KEYS if key in fields), None)
    confidence = next((fields[key] for key in _CONFIDENCE_KEYS if key in fields), 1.0)
    if not _is_position(position):
        raise NotReadableError("an object has no position of four numbers")
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0.0 <= confidence <= 1.0:
        raise NotReadableError("a confidence is not a number from 0 to 1")
    return _checked(position, float(confidence), str(fields.get("label", "")).strip().casefold())


def _checked(position: Any, confidence: float, label: str) -> Box:
    try:
        x1, y1, x2, y2 = (float(number) for number in position)
    except OverflowError:
        raise NotReadableError("a coordinate is too large") from None
    if not all(abs(number) < 1e9 for number in (x1, y1, x2, y2)) or x2 <= x1 or y2 <= y1:
        raise NotReadableError("a box has no area, or a coordinate that is no number of pixels")
    return Box(x1, y1, x2, y2, confidence, label)


def _size(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0
