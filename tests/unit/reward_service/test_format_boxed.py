"""The boxed style of the format scorer."""

import pytest

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.scorers.base import Sample
from crescendo.reward_service.scorers.format import FormatOptions, score


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{42}.", common_pb2.VERDICT_CORRECT),
        (r"so \boxed{\frac{1}{2}}", common_pb2.VERDICT_CORRECT),
        ("no box at all", common_pb2.VERDICT_WRONG),
        (r"\boxed{1} or \boxed{2}", common_pb2.VERDICT_WRONG),
        (r"cut off \boxed{4", common_pb2.VERDICT_WRONG),
        (r"\boxed{ }", common_pb2.VERDICT_WRONG),
    ],
)
def test_exactly_one_box_with_content(text: str, expected: "common_pb2.Verdict.ValueType") -> None:
    sample = Sample(text=text, prompt="", gold_answers=(), metadata={})
    assert score(sample, FormatOptions(style="boxed")).verdict == expected
