"""reasoning_gym: its scores, and that no answer reaches an eval as anything but plain data."""

import json
import re
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.scorers.base import Outcome, Sample
from crescendo.reward_service.scorers.reasoning_gym import (
    EXPRESSION_TASKS,
    LITERAL_TASKS,
    ReasoningGymOptions,
    is_plain_expression,
    is_plain_literal,
    score,
)

# The library's dependencies warn when they are imported for the first time.
pytestmark = [
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

COUNTDOWN = {"answer": "3*(4+5)", "metadata": {"numbers": [3, 4, 5], "target": 27}}


def judge(response: str, dataset: str, entry: object) -> Outcome:
    sample = Sample(response, metadata={"dataset": dataset, "entry": json.dumps(entry)})
    return score(sample, ReasoningGymOptions())


def test_scores_of_the_library() -> None:
    right = judge("<answer>(5+4)*3</answer>", "countdown", COUNTDOWN)
    assert (right.raw, right.verdict) == (1.0, common_pb2.VERDICT_CORRECT)
    wrong = judge("<answer>3+4+5</answer>", "countdown", COUNTDOWN)
    assert (wrong.raw, wrong.verdict) == (0.05, common_pb2.VERDICT_WRONG)
    assert judge("<answer>13</answer>", "chain_sum", {"answer": "13", "metadata": {}}).raw == 1.0


def test_what_cannot_be_scored() -> None:
    assert judge("no tag", "countdown", COUNTDOWN).verdict == common_pb2.VERDICT_UNPARSABLE
    assert judge("<answer>1</answer>", "no_such_task", {}).verdict == common_pb2.VERDICT_UNSUPPORTED
    sample = Sample("<answer>1</answer>", metadata={"dataset": "countdown", "entry": "{"})
    assert score(sample, ReasoningGymOptions()).verdict == common_pb2.VERDICT_UNSUPPORTED


ATTACKS = [
    "__import__('os').system('touch {path}')",
    "().__class__.__base__.__subclasses__()",
    "open({path!r}, 'w')",
    "[x for x in open({path!r}, 'w')]",
    "exec('1')",
    "exit()",
    "(1).real",
    "f\"{{open({path!r}, 'w')}}\"",
    "lambda: 0",
    "1 if open({path!r}, 'w') else 2",
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("dataset", sorted(LITERAL_TASKS | EXPRESSION_TASKS))
def test_attacks_are_not_evaluated(attack: str, dataset: str, tmp_path: object) -> None:
    path = f"{tmp_path}/proof"
    entry = {"answer": "x", "metadata": {"numbers": [1], "target": 1, "valid_answers": [], "integrand": "x"}}
    outcome = judge(f"<answer>{attack.format(path=path)}</answer>", dataset, entry)
    assert outcome.verdict == common_pb2.VERDICT_UNPARSABLE
    assert outcome.raw == 0.0


@pytest.mark.parametrize("text", ["1 2 3", "[1, 2]", "[['Q', '_']]", "abc def", "'abc'", "Q _ _"])
def test_plain_literals(text: str) -> None:
    assert is_plain_literal(text)


@pytest.mark.parametrize("text", ["(3 + 4)*5/2", "2*x**3 - x + C", "sin(x)*exp(2*x)", "3.5*y^2", "1e3"])
def test_plain_expressions(text: str) -> None:
    assert is_plain_expression(text)


@pytest.mark.parametrize(
    "text", ["x.y", "0x10", "evil(1)", "a_b", "x[0]", "'a'", "1.real", "x . y", ").y", "x;y", "x,y"]
)
def test_expressions_that_are_not_plain(text: str) -> None:
    assert not is_plain_expression(text)


@given(st.text(alphabet="abE10 .()+*_[]'\"x", max_size=30))
def test_a_plain_expression_has_no_attribute_subscript_or_string(text: str) -> None:
    if is_plain_expression(text):
        assert not re.search(r"[_\[\]'\"]", text)
        assert not re.search(r"\.\s*[A-Za-z]", text)


def test_every_task_that_evaluates_answers_is_known() -> None:
    """Fails when an installed version evaluates text in a file that the scorer's lists do not cover."""
    evaluating = re.compile(r"\b(?:eval|exec|parse_expr|sympify|literal_eval|loads)\(")
    harmless = re.compile(r"json\.loads\(|\.evalf\(")
    found = set()
    for folder in resources.files("reasoning_gym").iterdir():
        if folder.is_dir():
            for file in folder.iterdir():
                if file.name.endswith(".py"):
                    lines = file.read_text(encoding="utf-8").splitlines()
                    if any(evaluating.search(harmless.sub("", line)) for line in lines):
                        found.add(file.name.removesuffix(".py"))
    # These evaluate the problem's own text (or define a parser of that name), never the answer.
    of_the_problem = {"basic_arithmetic", "bitwise_arithmetic", "codeio", "number_sorting", "propositional_logic"}
    assert found - of_the_problem == LITERAL_TASKS | EXPRESSION_TASKS
