"""Box rewards by hand, against pycocotools' numbers, and by properties."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.scorers import (
    Sample,
    box_confidence,
    box_iou,
    box_reference,
    class_label,
    coco,
    detection_map,
    detection_weighted,
)
from crescendo.reward_service.scorers.boxes import Box, boxes_of, greedy_matches, iou, rescale

CORRECT, WRONG = common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_WRONG
UNPARSABLE, UNSUPPORTED = common_pb2.VERDICT_UNPARSABLE, common_pb2.VERDICT_UNSUPPORTED

# Recorded from COCOeval; `source` in the file names the version.
RECORDED = json.loads((Path(__file__).parent / "coco_cases.json").read_text())["cases"]

A, B = Box(0, 0, 100, 100), Box(200, 200, 300, 300)
A_80 = [0, 0, 100, 80]  # IoU 0.8 with A
A_JSON, B_JSON = "[0, 0, 100, 100]", "[200, 200, 300, 300]"

BOXES = st.builds(
    lambda x, y, w, h, c, label: Box(x, y, x + w, y + h, c, label),
    st.integers(0, 200),
    st.integers(0, 200),
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from(["cat", "dog"]),
)


def answer(*boxes: object) -> str:
    return f"<think>looking</think><answer>{json.dumps(boxes)}</answer>"


def sample(text: str, *golds: str, **metadata: str) -> Sample:
    return Sample(text, golds, metadata)


def test_iou_by_hand() -> None:
    assert iou(A, A) == 1.0
    assert iou(A, B) == 0.0
    assert iou(A, Box(100, 0, 200, 100)) == 0.0
    assert iou(A, Box(50, 0, 150, 100)) == pytest.approx(5000 / 15000)
    assert iou(A, Box(25, 25, 75, 75)) == pytest.approx(0.25)


@given(BOXES, BOXES)
def test_iou_is_symmetric_and_bounded(one: Box, other: Box) -> None:
    assert iou(one, other) == pytest.approx(iou(other, one))
    assert 0.0 <= iou(one, other) <= 1.0


@given(st.lists(BOXES, max_size=8), st.lists(BOXES, max_size=8))
def test_no_gold_box_matches_twice(boxes: list[Box], golds: list[Box]) -> None:
    matches = greedy_matches(boxes, golds, 0.5)
    assert len(matches) == len(boxes)
    assert sum(overlap > 0 for _, overlap in matches) <= len(golds)


# Visual-RFT ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "golds", "raw"),
    [
        ([A_80], [A_JSON], 0.8),
        ([A_80], [A_JSON, B_JSON], 0.4),  # one of two found
        ([A_80, [500, 500, 600, 600]], [A_JSON], 0.4),  # one of two is right
        ([A_80, A_80], [A_JSON], 0.8),  # a duplicate counts once
        ([[0, 0, 100, 50]], [A_JSON], 0.0),  # IoU 0.5 is not above 0.5
        ([], [A_JSON], 0.0),
        ([], ["[]"], 1.0),
        ([A_80], ["[]"], 0.0),
        # The surer box takes the gold one, although the other fits better.
        ([{"Position": [0, 0, 100, 100], "Confidence": 0.2}, {"Position": A_80, "Confidence": 0.9}], [A_JSON], 0.4),
    ],
)
def test_overlap_reward(boxes: list[object], golds: list[str], raw: float) -> None:
    outcome = box_iou.score(sample(answer(*boxes), *golds), box_iou.BoxIouOptions())
    assert outcome.raw == pytest.approx(raw)
    assert outcome.verdict == (CORRECT if raw >= 0.5 else WRONG)


@pytest.mark.parametrize(
    ("boxes", "golds", "raw"),
    [
        ([{"Position": A_80, "Confidence": 0.9}], [A_JSON], 0.9),
        ([{"Position": [500, 500, 600, 600], "Confidence": 0.9}], [A_JSON], 0.1),
        ([{"Position": A_80, "Confidence": 0.9}, {"Position": [5, 5, 6, 6], "Confidence": 0.3}], [A_JSON], 0.8),
        ([], [A_JSON], 0.0),
        ([], ["[]"], 1.0),
    ],
)
def test_confidence_reward(boxes: list[object], golds: list[str], raw: float) -> None:
    outcome = box_confidence.score(sample(answer(*boxes), *golds), box_confidence.BoxConfidenceOptions())
    assert outcome.raw == pytest.approx(raw)


def test_boxes_as_the_papers_prompt_asks_for_them() -> None:
    text = "<answer>[{'Position': [0, 0, 100, 80], 'Confidence': 0.5}]</answer>"
    assert box_iou.score(sample(text, A_JSON), box_iou.BoxIouOptions()).raw == pytest.approx(0.8)
    fenced = '<answer>```json\n[{"bbox_2d": [0, 0, 100, 80], "label": "cat"}]\n```</answer>'
    assert box_iou.score(sample(fenced, A_JSON), box_iou.BoxIouOptions()).raw == pytest.approx(0.8)


@pytest.mark.parametrize(
    "content",
    [
        "no boxes",
        "[1, 2, 3]",
        "[1, 2, 3, true]",
        "[10, 10, 5, 20]",
        "[NaN, 0, 1, 1]",
        "[0, 0, 1e400, 1]",
        '[{"Position": [0, 0, 1, 1], "Confidence": 2}]',
        '[{"Position": [0, 0, 1, 1], "Confidence": "high"}]',
        '[{"Confidence": 1}]',
        "[" * 5000,
        "__import__('os').getcwd()",
        f"[0, 0, 1, {'9' * 5000}]",
    ],
)
def test_what_is_no_box_scores_nothing(content: str) -> None:
    for scorer in (box_iou.SCORER, box_confidence.SCORER, box_reference.SCORER, detection_map.SCORER):
        outcome = scorer.score(sample(f"<answer>{content}</answer>", A_JSON), scorer.options())
        assert (outcome.raw, outcome.verdict) == (0.0, UNPARSABLE)


def test_a_data_set_without_boxes_is_unsupported() -> None:
    for golds in ((), ("cat",)):
        outcome = box_iou.score(sample(answer(A_80), *golds), box_iou.BoxIouOptions())
        assert outcome.verdict == UNSUPPORTED


@pytest.mark.parametrize(
    ("content", "verdict"),
    [
        ("Golden Retriever", CORRECT),
        ("golden_retriever", CORRECT),
        (" GoldenRetriever\n", CORRECT),
        ("retriever", WRONG),
        ("a golden retriever or a poodle", WRONG),
        ("", WRONG),  # the released code takes an empty answer for right
        ("_", WRONG),
    ],
)
def test_class_reward(content: str, verdict: int) -> None:
    outcome = class_label.score(
        sample(f"<answer>{content}</answer>", "golden retriever"), class_label.ClassLabelOptions()
    )
    assert outcome.verdict == verdict


# VLM-R1 ----------------------------------------------------------------------------------------------------------


def test_reference_reward_is_the_overlap() -> None:
    options = box_reference.BoxReferenceOptions()
    assert box_reference.score(sample(answer(*A_80), A_JSON), options).raw == pytest.approx(0.8)
    assert box_reference.score(sample(answer(A_80), A_JSON, B_JSON), options).raw == pytest.approx(0.8)
    assert box_reference.score(sample(answer(A_80, A_80), A_JSON), options).verdict == UNPARSABLE
    assert box_reference.score(sample("<answer>[]</answer>", A_JSON), options).raw == 0.0


def test_reference_reward_rescales_to_the_image() -> None:
    sizes = {"image_width": "1000", "image_height": "500", "input_width": "500", "input_height": "500"}
    gold = "[0, 0, 200, 100]"
    outcome = box_reference.score(sample(answer([0, 0, 100, 100]), gold, **sizes), box_reference.BoxReferenceOptions())
    assert outcome.raw == pytest.approx(1.0)
    assert rescale([A], {**sizes, "input_width": "0"}) == [A]
    assert rescale([A], {**sizes, "input_width": "wide"}) == [A]


@pytest.mark.parametrize("case", RECORDED, ids=range(len(RECORDED)))
def test_map_equals_cocos(case: dict[str, object]) -> None:
    boxes, golds = boxes_of(case["predicted"]), boxes_of(case["gold"])
    assert coco.mean_average_precision(boxes, golds) == pytest.approx(case["map"], abs=1e-9)
    assert coco.mean_average_precision(boxes, golds, coco.THRESHOLDS[:1]) == pytest.approx(case["ap50"], abs=1e-9)


def test_average_precision_by_hand() -> None:
    golds = [A, B]
    # Right, wrong, right: precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1. Read at 101 recalls: 51 times 1, 50 times 2/3.
    ranked = [Box(0, 0, 100, 100, 0.9), Box(500, 0, 600, 100, 0.8), Box(200, 200, 300, 300, 0.7)]
    assert coco.average_precision(ranked, golds, 0.5) == pytest.approx((51 + 50 * 2 / 3) / 101)
    # IoU 0.8 passes the thresholds .50 to .80: 7 of 10.
    assert coco.mean_average_precision([Box(0, 0, 100, 80)], [A]) == pytest.approx(0.7)


@given(st.lists(BOXES, max_size=6), st.lists(BOXES, min_size=1, max_size=6))
def test_map_is_bounded_and_one_for_the_gold_boxes(boxes: list[Box], golds: list[Box]) -> None:
    assert 0.0 <= coco.mean_average_precision(boxes, golds) <= 1.0
    assert coco.mean_average_precision(golds, golds) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("boxes", "gold", "raw"),
    [
        ([], "[]", 1.0),
        ([A_80], "[]", 0.0),
        ([], A_JSON, 0.0),
        ([A_80], A_JSON, 0.7),
        ([A_80, [500, 500, 600, 600]], A_JSON, 0.35),  # times 1/2 for the box too many
    ],
)
def test_detection_reward(boxes: list[object], gold: str, raw: float) -> None:
    outcome = detection_map.score(sample(answer(*boxes), gold), detection_map.DetectionMapOptions())
    assert outcome.raw == pytest.approx(raw)


def test_invented_labels_cost() -> None:
    gold = '[{"bbox_2d": [0, 0, 100, 100], "label": "cat"}]'
    right = {"bbox_2d": [0, 0, 100, 100], "label": "cat"}
    invented = {"bbox_2d": [0, 0, 100, 100], "label": "anything"}
    options = detection_map.DetectionMapOptions()
    assert detection_map.score(sample(answer(right), gold), options).raw == pytest.approx(1.0)
    assert detection_map.score(sample(answer(right, invented, invented), gold), options).raw == pytest.approx(1 / 3)


def test_weighted_detection_by_hand() -> None:
    options = detection_weighted.DetectionWeightedOptions()
    gold = json.dumps([[0, 0, 100, 100], [200, 200, 300, 300]])
    # One of two found at IoU 0.8, one box invented: position 0.8, completeness 1 - (1/2 + 1/2) / 2.
    outcome = detection_weighted.score(sample(answer(A_80, [500, 500, 600, 600]), gold), options)
    assert outcome.raw == pytest.approx(0.7 * 0.8 + 0.3 * 0.5)
    assert detection_weighted.score(sample(answer(), "[]"), options).raw == 1.0
    assert detection_weighted.score(sample(answer(A_80), "[]"), options).raw == 0.0
    with_labels = detection_weighted.DetectionWeightedOptions(position=1.0, label=1.0, completeness=0.0)
    labelled = '[{"bbox_2d": [0, 0, 100, 100], "label": "cat"}]'
    wrong_label = {"bbox_2d": [0, 0, 100, 100], "label": "dog"}
    assert detection_weighted.score(sample(answer(wrong_label), labelled), with_labels).raw == pytest.approx(0.5)
