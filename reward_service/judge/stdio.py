"""Tests by standard input and output: one run a case, and what was written is compared here.

The candidate is the program itself, and its output is only ever compared with what is expected, outside. Problems whose
answers need a program to judge them (special judges) are not for this: `code_tests` refuses them.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from crescendo.reward_service.judge.functional import PROFILE, Budget
from crescendo.reward_service.judge.libraries import library_files
from crescendo.reward_service.judge.verdicts import Judged, ended_early, tally
from crescendo.reward_service.sandbox.protocol import Ending, Outcome, Program

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
MAX_NUMBER = 400  # characters


@dataclass(frozen=True)
class StdioCase:
    """What a program is given and what it has to write."""

    input: str
    output: str


@dataclass(frozen=True)
class Comparison:
    """How output is compared.

    exact: byte for byte; otherwise any white space separates and none counts at the ends. tolerance: absolute or
    relative difference allowed between numbers, for comparisons that are not exact.
    """

    exact: bool = False
    tolerance: float = 0.0

    def agree(self, found: bytes, expected: str) -> bool:
        """Whether output is what is expected."""
        if self.exact:
            return found == expected.encode("utf-8", "surrogatepass")
        words, wanted = found.decode("utf-8", "replace").split(), expected.split()
        return len(words) == len(wanted) and all(map(self._agree, words, wanted))

    def _agree(self, word: str, wanted: str) -> bool:
        if word == wanted:
            return True
        if not self.tolerance or not (_is_number(word) and _is_number(wanted)):
            return False
        return math.isclose(float(word), float(wanted), rel_tol=self.tolerance, abs_tol=self.tolerance)


def _is_number(word: str) -> bool:
    return len(word) <= MAX_NUMBER and _NUMBER.fullmatch(word) is not None


def stdio_programs(source: str, cases: Sequence[StdioCase], budget: Budget) -> list[Program]:
    """One run a case."""
    files = {**library_files(source), "main.py": source.encode("utf-8", "surrogatepass")}
    return [
        Program(PROFILE, files, case.input.encode("utf-8", "surrogatepass"), limits=budget.limits) for case in cases
    ]


def judge_stdio(cases: Sequence[StdioCase], ended: Sequence[Outcome], comparison: Comparison) -> Judged:
    """Compares outputs, in order; cases beyond those that ran count as not passed."""
    passed: list[bool] = []
    causes: list[str] = []
    for case, outcome in zip(cases, ended, strict=False):
        cause = _cause(case, outcome, comparison)
        passed.append(not cause)
        causes.append(cause)
    missing = len(cases) - len(passed)
    is_late = any(outcome.ending is Ending.TIMEOUT for outcome in ended)
    return tally(passed + [False] * missing, causes + ["not run"] * missing, is_late)


def _cause(case: StdioCase, outcome: Outcome, comparison: Comparison) -> str:
    """Why a case failed; empty if it passed. A program that did not end well has not solved it, whatever it wrote."""
    if outcome.ending is not Ending.EXITED or outcome.code:
        return ended_early(outcome)
    if outcome.is_stdout_truncated:
        return "it wrote too much"
    return "" if comparison.agree(outcome.stdout, case.output) else "its output is not what is expected"
