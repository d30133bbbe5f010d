"""reasoning_gym: a procedural task's answer, judged by the task's own function.

Some of those functions evaluate the answer as Python (`eval`, or SymPy's parse_expr, which ends in eval). For
these the answer is read first by a grammar of our own, and refused unless it is a plain literal or a plain
arithmetic expression; tests/unit/reward_service fails when the installed version gains another such task.
"""

import ast
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from crescendo.proto.v1.common_pb2 import VERDICT_CORRECT, VERDICT_UNPARSABLE, VERDICT_WRONG
from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer, unsupported
from crescendo.reward_service.scorers.extract import after_last, last_boxed, last_tagged
from crescendo.reward_service.typed_options import option

# Tasks that call eval on the answer: Python literals only.
LITERAL_TASKS = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
# Tasks that call sympy.parse_expr on the answer: arithmetic over numbers, symbols and elementary functions only.
EXPRESSION_TASKS = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
_EXPRESSION = re.compile(r"[0-9A-Za-z+\-*/^(). \t\n]*")
_NAME = re.compile(r"[A-Za-z][0-9A-Za-z]*")
_NAMES = frozenset(
    {"exp", "log", "ln", "sqrt", "Abs", "pi"}
    | {"sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan"}
    | {"sinh", "cosh", "tanh", "asinh", "acosh", "atanh"}
)
_NUMBER = re.compile(r"\d[0-9A-Za-z.]*")
_PLAIN_NUMBER = re.compile(r"\d+\.?\d*(?:[eE]\d{1,3})?")
_ATTRIBUTE = re.compile(r"\.\s*[A-Za-z]|[A-Za-z)]\s*\.")


@dataclass(frozen=True)
class ReasoningGymOptions:
    """Options of reasoning_gym."""

    extract: str = option(
        "tagged",
        "where the answer is: in the last tag, in the last box, or after the last marker",
        choices=("tagged", "boxed", "marker"),
    )
    tag: str = option("answer", "tag that tagged looks for", pattern=r"[A-Za-z_][\w-]*")
    marker: str = option("", "marker: the answer follows its last occurrence; empty: the whole response")


@lru_cache(maxsize=256)
def _score_function(dataset: str) -> Any:
    from reasoning_gym import get_score_answer_fn

    return get_score_answer_fn(dataset)


def _find(text: str, options: ReasoningGymOptions) -> str | None:
    if options.extract == "tagged":
        found = last_tagged(text, options.tag)
    elif options.extract == "boxed":
        found = last_boxed(text)
    else:
        found = after_last(text, options.marker)
    return None if found is None else found.strip()


def is_plain_literal(answer: str) -> bool:
    """Whether eval(answer) can do nothing but build a literal, or raise SyntaxError."""
    try:
        ast.literal_eval(answer)
    except SyntaxError:
        return True
    except (ValueError, TypeError, MemoryError, RecursionError):
        return False
    return True


def is_plain_expression(answer: str) -> bool:
    """Whether the answer is arithmetic over numbers, one-letter symbols and known elementary functions."""
    if not _EXPRESSION.fullmatch(answer) or _ATTRIBUTE.search(answer):
        return False
    without_numbers = _NUMBER.sub(lambda found: " " if _PLAIN_NUMBER.fullmatch(found.group()) else "_", answer)
    if "_" in without_numbers:
        return False
    return all(len(name) == 1 or name in _NAMES for name in _NAME.findall(without_numbers))


def _is_safe(dataset: str, answer: str) -> bool:
    if dataset in LITERAL_TASKS:
        return is_plain_literal(answer)
    return dataset not in EXPRESSION_TASKS or is_plain_expression(answer)


def score(sample: Sample, options: ReasoningGymOptions) -> Outcome:
    """The task's score, 0 to 1; correct at 1. Reads metadata["dataset"] and metadata["entry"] (JSON)."""
    dataset = sample.metadata.get("dataset", "")
    try:
        entry = json.loads(sample.metadata.get("entry", ""))
    except json.JSONDecodeError as error:
        return unsupported(f"metadata.entry is not JSON: {error}")
    try:
        judge = _score_function(dataset)
    except ValueError:
        return unsupported(f"reasoning-gym has no data set {dataset!r}")
    answer = _find(sample.text, options)
    if answer is None:
        return Outcome(0.0, VERDICT_UNPARSABLE, f"no answer found by {options.extract!r}")
    if not _is_safe(dataset, answer):
        return Outcome(0.0, VERDICT_UNPARSABLE, "the answer is neither a plain literal nor a plain expression")
    value = min(1.0, max(0.0, float(judge(answer=answer, entry=entry))))
    return Outcome(value, VERDICT_CORRECT if value >= 1.0 else VERDICT_WRONG, f"score {value:.3g}")


SCORER = Scorer(
    name="reasoning_gym",
    source="reasoning-gym: each task's score_answer",
    low=0.0,
    high=1.0,
    options=ReasoningGymOptions,
    score=score,
    preload=("reasoning_gym",),
)
