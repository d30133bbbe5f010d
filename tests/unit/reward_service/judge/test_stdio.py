"""Programs judged by standard input and output, and the forms in which data sets hold tests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.errors import DataError
from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.judge.code_tests import CheckText, StdioTests, read_tests
from crescendo.reward_service.judge.stdio import Comparison, StdioCase, judge_stdio
from crescendo.reward_service.sandbox.protocol import Ending, Outcome

CORRECT, WRONG, TIMEOUT = common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_WRONG, common_pb2.VERDICT_TIMEOUT
TOKENS, EXACT, NEAR = Comparison(), Comparison(exact=True), Comparison(tolerance=1e-6)


@pytest.mark.parametrize(
    ("comparison", "found", "expected", "agree"),
    [
        (TOKENS, b" 1\t2 \r\n\n", "1 2\n", True),
        (TOKENS, b"12", "1 2", False),
        (TOKENS, b"1.0", "1", False),
        (TOKENS, b"Yes", "YES", False),
        (TOKENS, b"", "", True),
        (TOKENS, b"1 2 3", "1 2", False),
        (TOKENS, b"\xff", "\xff", False),
        (EXACT, b"1 2\n", "1 2\n", True),
        (EXACT, b"1 2", "1 2\n", False),
        (NEAR, b"0.3333333", "0.33333333333", True),
        (NEAR, b"0.334", "0.333", False),
        (NEAR, b"1e3", "1000.0", True),
        (NEAR, b"nan", "nan", True),
        (NEAR, b"nan", "1", False),
        (NEAR, b"inf", "1e999", False),
        (NEAR, b"1_0", "10", False),
        (NEAR, b"x 1.0000000001", "x 1", True),
        (NEAR, b"9" * 10_000, "1", False),
    ],
)
def test_comparisons(comparison: Comparison, found: bytes, expected: str, agree: bool) -> None:
    assert comparison.agree(found, expected) is agree


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=6))
def test_white_space_never_decides(words: list[str]) -> None:
    assert TOKENS.agree("\n ".join(words).encode() + b"\n", " ".join(words))


def ended(stdout: bytes, **changes: object) -> Outcome:
    return Outcome(**{"ending": Ending.EXITED, "stdout": stdout, **changes})  # type: ignore[arg-type]


CASES = (StdioCase("1", "1"), StdioCase("2", "2"))


@pytest.mark.parametrize(
    ("outcomes", "num_passed", "verdict"),
    [
        ([ended(b"1"), ended(b"2")], 2, CORRECT),
        ([ended(b"1"), ended(b"3")], 1, WRONG),
        ([ended(b"1")], 1, WRONG),
        ([], 0, WRONG),
        ([ended(b"1"), ended(b"2", code=1)], 1, WRONG),
        ([ended(b"1"), ended(b"2", ending=Ending.TIMEOUT)], 1, TIMEOUT),
        ([ended(b"1", ending=Ending.SIGNALED, code=11), ended(b"2")], 1, WRONG),
        ([ended(b"1", is_stdout_truncated=True), ended(b"2")], 1, WRONG),
    ],
)
def test_cases_together(outcomes: list[Outcome], num_passed: int, verdict: int) -> None:
    found = judge_stdio(CASES, outcomes, TOKENS)
    assert (found.num_passed, found.num_cases, found.verdict) == (num_passed, 2, verdict)


def test_forms_of_tests() -> None:
    assert read_tests('{"functional": "assert f(1)", "entry_point": "f"}') == CheckText("assert f(1)", "f")
    assert read_tests("assert f(1)") == CheckText("assert f(1)")
    assert read_tests('{"inputs": ["1"], "outputs": ["2"]}') == StdioTests((StdioCase("1", "2"),))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "{",
        "{}",
        '{"inputs": [], "outputs": []}',
        '{"inputs": ["1"], "outputs": []}',
        '{"inputs": [1], "outputs": ["1"]}',
        '{"functional": ""}',
        '{"functional": 3}',
        '{"inputs": ["1"], "outputs": ["1"], "special_judge": true}',
        '{"functional": "assert f(1)", "checker": "def check(): ..."}',
        "{" * 100_000,
        '{"fn_name": "f", "inputs": ["[1]"], "outputs": [1]}',
        '{"fn_name": "f()", "inputs": [[1]], "outputs": [1]}',
    ],
    ids=range(14),
)
def test_bad_tests_are_the_datas_fault(text: str) -> None:
    with pytest.raises(DataError):
        read_tests(text)
