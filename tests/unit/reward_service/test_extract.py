"""Finding the answer in a response."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.reward_service.scorers.extract import after_last, last_boxed, last_number, last_tagged


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{5} but \boxed{6", "5"),
        (r"\boxed{", None),
        ("no box", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    "text", [r"\boxed{" * 140_000, "{" * 1_000_000, r"\boxed{" + "{" * 1_000_000, "\\" * 1_000_001]
)
def test_last_boxed_takes_linear_time(text: str) -> None:
    started_s = time.perf_counter()
    assert last_boxed(text) is None
    assert time.perf_counter() - started_s < 5.0


@given(st.text(), st.text(alphabet="abc123+ ", min_size=1), st.text(alphabet="abc ."))
def test_the_last_box_wins(before: str, content: str, after: str) -> None:
    assert last_boxed(f"{before} \\boxed{{{content}}}{after}") == content


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<answer>4</answer>", "4"),
        ("<answer>4</answer><answer>5</answer>", "5"),
        ("<answer>4", None),
        ("4</answer>", None),
    ],
)
def test_last_tagged(text: str, content: str | None) -> None:
    assert last_tagged(text, "answer") == content


@pytest.mark.parametrize(
    ("text", "number"),
    [("1 and 2", "2"), ("it is -3.5.", "-3.5"), ("1,234 apples", "1234"), ("3/4", "3/4"), ("none", None)],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_after_last() -> None:
    assert after_last("a#b#c", "#") == "c"
    assert after_last("abc", "#") is None
    assert after_last("abc", "") == "abc"
