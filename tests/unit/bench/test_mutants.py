"""The mutants of bench_leetcode: one change each, by seed, and the un-sandboxed check that they are compared with."""

import ast
import json
import random
import subprocess
import sys

import pytest

from tests.bench import bare_check
from tests.bench.mutants import mutants_of

SOURCE = """
def f(values, limit):
    best = 0
    for value in values:
        if value > limit and value not in (3, 4):
            best = max(best, value + 1)
    return best
"""


def test_each_mutant_is_another_program_that_differs_in_one_place() -> None:
    found = mutants_of(SOURCE, 100, random.Random(0))
    assert len({mutant.source for mutant in found}) == len(found)
    original = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in found:
        lines = mutant.source.splitlines()
        assert sum(one != other for one, other in zip(original, lines, strict=True)) == 1
        assert original[mutant.line - 2] != lines[mutant.line - 2]
    kinds = {"comparison", "and/or", "constant", "arithmetic", "min/max", "condition", "return"}
    assert {mutant.operator for mutant in found} == kinds


def test_a_seed_draws_the_same_mutants() -> None:
    drawn = [mutants_of(SOURCE, 3, random.Random(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert mutants_of("pass", 3, random.Random(0)) == mutants_of("def (", 3, random.Random(0)) == []


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("def f(x): return x + one", "pass"),
        ("def f(x): return x", "AssertionError"),
        ("import os; os._exit(3)", "status 768"),
        ("while True: pass", "status 14"),
    ],
)
def test_the_bare_check_says_how_a_program_fared(program: str, said: str) -> None:
    lines = [json.dumps("one = 1"), json.dumps([program, "assert f(1) == 2", 0.5])]
    done = subprocess.run(
        [sys.executable, "-I", "-S", bare_check.__file__],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.startswith(said)
