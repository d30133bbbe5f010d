"""Tests of a coding problem as data sets hold them: a JSON object, or the text of a check.

    {"functional": "def check(candidate): ...", "entry_point": "add"}        LeetCode, HumanEval; entry_point if needed
    {"inputs": ["1 2\\n", ...], "outputs": ["3\\n", ...]}                      APPS, TACO, CodeContests
    {"fn_name": "add", "inputs": [[1, 2], ...], "outputs": [3, ...]}           the same, of a function
    def check(candidate): ...                                                as it is; or assertions, as in MBPP

`special_judge` or `checker` in the object says that answers need a program to judge them: such problems are refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from crescendo.common.errors import DataError
from crescendo.reward_service.judge.checks import Call, EqualCase, FunctionalTests
from crescendo.reward_service.judge.stdio import StdioCase

MAX_CASES = 10_000
SPECIAL_JUDGE = ("special_judge", "checker")


@dataclass(frozen=True)
class CheckText:
    """A check to be read (`checks`) or run (`replay`)."""

    source: str
    entry_point: str = ""


@dataclass(frozen=True)
class StdioTests:
    """Cases of a program."""

    cases: tuple[StdioCase, ...]


@dataclass(frozen=True)
class FunctionTests:
    """Calls of one function and what they return; the function may stand in a class Solution."""

    name: str
    calls: tuple[Call, ...]
    cases: tuple[EqualCase, ...]

    def for_program(self, source: str) -> FunctionalTests:
        """The tests of a program: a method where it has the class, a function where not."""
        entry = ("Solution", None, self.name) if "class Solution" in source else (self.name,)
        return FunctionalTests(entry, self.calls, self.cases)


CodeTests = CheckText | StdioTests | FunctionTests


@lru_cache(maxsize=512)  # the samples of one prompt share their tests
def read_tests(text: str) -> CodeTests:
    """The tests; raises DataError for an empty test set, a special judge, or what is neither kind."""
    if not text.strip():
        raise DataError("there are no tests.", field="tests")
    if not text.lstrip().startswith("{"):
        return CheckText(text)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"tests are not JSON: {error}.", field="tests") from None
    return tests_of(found)


def tests_of(found: Mapping[str, Any]) -> CodeTests:
    """Likewise, of a JSON object."""
    special = [name for name in SPECIAL_JUDGE if found.get(name)]
    if special:
        raise DataError(f"tests have {special[0]!r}: a special judge decides, which is not supported.", field="tests")
    if "functional" in found:
        source, entry_point = found["functional"], found.get("entry_point") or ""
        if not (isinstance(source, str) and source.strip() and isinstance(entry_point, str)):
            raise DataError("tests.functional is not the text of a check.", field="tests.functional")
        return CheckText(source, entry_point)
    inputs, outputs = found.get("inputs"), found.get("outputs")
    if not (isinstance(inputs, list) and isinstance(outputs, list) and len(inputs) == len(outputs) > 0):
        raise DataError(
            "tests have neither a check (functional) nor inputs and outputs of equal number, at least one.",
            field="tests",
        )
    if len(inputs) > MAX_CASES:
        raise DataError(f"tests have {len(inputs)} cases; at most {MAX_CASES}.", field="tests.inputs")
    if found.get("fn_name"):
        return _function_tests(found["fn_name"], inputs, outputs)
    if not all(isinstance(part, str) for part in (*inputs, *outputs)):
        raise DataError("tests.inputs and tests.outputs must be texts.", field="tests.inputs")
    return StdioTests(tuple(StdioCase(given, wanted) for given, wanted in zip(inputs, outputs, strict=True)))


def _function_tests(name: Any, inputs: list[Any], outputs: list[Any]) -> FunctionTests:
    if not (isinstance(name, str) and name.isidentifier() and all(isinstance(given, list) for given in inputs)):
        raise DataError("tests.fn_name must be a name, and each of tests.inputs a list of arguments.", field="tests")
    calls = tuple(Call(tuple(given), {}) for given in inputs)
    return FunctionTests(name, calls, tuple(EqualCase(call, _accepted(wanted)) for call, wanted in enumerate(outputs)))


def _accepted(wanted: Any) -> tuple[Any, ...]:
    """APPS wraps some expected values into a list of one, and accepts the value with and without it."""
    return (wanted, wanted[0]) if isinstance(wanted, list) and len(wanted) == 1 else (wanted,)
