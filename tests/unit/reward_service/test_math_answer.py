"""math_answer: what counts as equal, and where the answer is looked for."""

import pytest

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.scorers.base import Sample
from crescendo.reward_service.scorers.math_answer import MathOptions, score

CORRECT, WRONG = common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_WRONG
UNPARSABLE, UNSUPPORTED = common_pb2.VERDICT_UNPARSABLE, common_pb2.VERDICT_UNSUPPORTED


def verdict(response: str, *golds: str, **options: str) -> int:
    outcome = score(Sample(response, golds), MathOptions(**options))
    assert outcome.raw == (1.0 if outcome.verdict == CORRECT else 0.0)
    return outcome.verdict


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        (r"\boxed{42}", "42"),
        (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}"),
        (r"\boxed{0.5}", r"$\frac{1}{2}$"),
        (r"\boxed{1,234}", "1234"),
        (r"\boxed{1234}", "1,234"),
        (r"\boxed{5\text{ cm}}", "5"),
        (r"\boxed{2\sqrt{3}}", r"\sqrt{12}"),
        (r"\boxed{(x+1)^2}", "x^2+2x+1"),
        (r"\boxed{\{2, 1\}}", r"\{1, 2\}"),
        (r"\boxed{(1, 2)}", "(1,2)"),
        (r"\boxed{12\%}", r"12\%"),
        (r"\boxed{42409}", r"\$42409"),
        (r"\boxed{\$42409}", r"\$42409"),
        (r"\boxed{-3}", "-3"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{\text{Monday}}", r"\text{Monday}"),
    ],
)
def test_equal_answers(response: str, gold: str) -> None:
    assert verdict(f"Hence the answer is ${response}$.", gold) == CORRECT


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        (r"\boxed{43}", "42"),
        (r"\boxed{41, 42, 43}", "42"),
        (r"\boxed{(2, 1)}", "(1,2)"),
        (r"\boxed{x^2+2x}", "x^2+2x+1"),
        (r"\boxed{42} or rather \boxed{43}", "42"),
        (r"\boxed{x > 0}", "x > 1"),
    ],
)
def test_different_answers(response: str, gold: str) -> None:
    assert verdict(response, gold) == WRONG


def test_any_of_several_gold_answers_counts() -> None:
    assert verdict(r"\boxed{3}", "2", "3") == CORRECT
    assert verdict(r"\boxed{4}", "2", "3") == WRONG


def test_where_the_answer_is_looked_for() -> None:
    text = r"first \boxed{1}, <answer>2</answer>, and 3"
    assert verdict(text, "1", extract="boxed") == CORRECT
    assert verdict(text, "2", extract="tagged") == CORRECT
    assert verdict(text, "3", extract="last_number") == CORRECT
    assert verdict(text, "1", extract="any") == CORRECT
    assert verdict("the answer is 7.", "7") == CORRECT
    assert verdict("the answer is 7.", "7", extract="boxed") == UNPARSABLE
    assert verdict("<final>7</final>", "7", extract="tagged", tag="final") == CORRECT


def test_only_what_follows_the_thinking_is_read() -> None:
    assert verdict(r"<think>\boxed{1}</think>\boxed{2}", "2", after="</think>") == CORRECT
    assert verdict(r"<think>\boxed{2}", "2", after="</think>") == UNPARSABLE


def test_what_cannot_be_read() -> None:
    assert verdict("I don't know.", "42") == UNPARSABLE
    assert verdict("", "42") == UNPARSABLE
    assert verdict(r"\boxed{42}") == UNSUPPORTED
    assert verdict(r"\boxed{42}", "") == UNSUPPORTED


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        (r"\boxed{5\ \text{cm}}", "5"),
        (r"\boxed{5}", r"5\text{ cm}"),
        (r"\boxed{30^\circ}", "30"),
        (r"\boxed{\$18}", "18"),
        (r"\boxed{12\text{ dollars}}", "12"),
        (r"\boxed{40\text{ km/h}}", "40"),
    ],
)
def test_units_do_not_count(response: str, gold: str) -> None:
    assert verdict(response, gold) == CORRECT


def test_the_order_of_gold_and_answer_is_math_verifys() -> None:
    # A range is no way of naming a value in it, nor a value of naming the range.
    assert verdict(r"\boxed{x \in (0, 10)}", "5") == WRONG
    assert verdict(r"\boxed{0 < x < 10}", "5") == WRONG
    assert verdict(r"\boxed{5}", "(0, 10)") == WRONG
