"""Test-case generation: which cases and problems are kept, and hand-written problems with wrong submissions."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.errors import EnvironmentProblem, RequestError, WorkerLostError
from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.judge.conduct import judge
from crescendo.reward_service.judge.inside import cases
from crescendo.reward_service.judge.selection import Selection, SelectionRules, select
from crescendo.reward_service.judge.steps import Rules
from crescendo.reward_service.judge.testcases import Generation, Problem, RunRules
from crescendo.reward_service.sandbox.protocol import Ending, Outcome, Program
from tests.fakes.plain_sandbox import PlainSandbox

SMALL = SelectionRules(num_cases=8, num_references=4, min_agree=3, min_valid=5, min_pass=3)


def chosen(outputs: Sequence[Sequence[str | None]], rules: SelectionRules = SMALL) -> Selection:
    return select([f"input {number}" for number in range(len(outputs))], outputs, rules)


def test_cases_that_enough_references_agree_on_are_kept() -> None:
    same, split, failed, empty = ("1\n", "1", "1 ", "2"), ("1", "1", "2", "2"), (None, None, "1", "1"), ("", "", "", "")
    found = chosen([same, same, split, failed, empty, same, (None,) * 4, same, same])
    assert found.inputs == ("input 0", "input 1", "input 5", "input 7", "input 8")
    assert set(found.outputs) == {"1\n"}
    assert found.num_passing == 3
    assert not found.reason
    assert found.dropped == {"references disagree": 2, "the output is empty": 1, "every reference failed": 1}


def test_a_problem_goes_when_too_few_cases_are_valid_or_too_few_references_pass_them_all() -> None:
    same = ("1", "1", "1", "2")
    assert "4 valid cases" in chosen([same] * 4 + [("1", "2", "1", "2")] * 4).reason
    # Each case has three that agree, never the same three: no reference is right about all.
    turning = [tuple("x" if place == number % 4 else "y" for place in range(4)) for number in range(8)]
    found = chosen(turning)
    assert len(found.inputs) == 8
    assert found.num_passing == 0
    assert "0 of 4 references" in found.reason


@given(st.lists(st.lists(st.sampled_from(["1", "2", " 1", "", None]), min_size=4, max_size=4), max_size=12))
def test_what_is_kept_meets_the_rules(outputs: list[list[str | None]]) -> None:
    found = chosen(outputs)
    for case, output in zip(found.inputs, found.outputs, strict=True):
        written = outputs[int(case.split()[1])]
        assert sum(one is not None and one.split() == output.split() for one in written) >= SMALL.min_agree
    assert bool(found.reason) == (len(found.inputs) < SMALL.min_valid or found.num_passing < SMALL.min_pass)
    assert len(found.inputs) + found.dropped.total() == len(outputs)


@pytest.mark.parametrize(
    "numbers",
    [{"min_agree": 11}, {"min_agree": 5}, {"min_pass": 0}, {"min_valid": 51}, {"num_references": 6}],
    ids=str,
)
def test_rules_that_decide_nothing_are_refused(numbers: dict[str, int]) -> None:
    SelectionRules().check()
    with pytest.raises(RequestError):
        SelectionRules(**numbers).check()


# Hand-written problems. Programs run as child processes.

GENERATOR = "from cases import *\nn = size(1, 40)\nwrite(n)\nwrite(wholes(n, -100, 100))\n"
RIGHT = "input()\nprint(max(map(int, input().split())))"
SORTS = "n = int(input())\nprint(sorted(int(x) for x in input().split())[-1])"
BY_HAND = "n = int(input())\nbest = -10**9\nfor x in input().split():\n    best = max(best, int(x))\nprint(best)"
STARTS_AT_ZERO = "input()\nprint(max([0, *map(int, input().split())]))"  # wrong if all are negative
FIRST = "input()\nprint(input().split()[0])"


def problem(*solutions: str, generator: str = GENERATOR, special: bool = False) -> Problem:
    return Problem("largest", "Print the largest number.", solutions, generator, special)


async def generated(given: Problem, rules: SelectionRules = SMALL, sandbox: PlainSandbox | None = None):  # type: ignore[no-untyped-def]
    return await Generation(sandbox or PlainSandbox(), RunRules(rules, case_s=20.0)).generate(given)


async def test_a_problem_with_good_references_is_kept_and_its_tests_tell_wrong_programs() -> None:
    found = await generated(problem(RIGHT, SORTS, BY_HAND, FIRST))
    assert (found.rule, found.selection.num_passing) == ("", 3)
    assert found.facts == {"num_inputs": 8, "num_valid": 8, "num_passing": 3}
    tests = json.dumps({"inputs": found.selection.inputs, "outputs": found.selection.outputs})
    verdicts = [(await judge(source, tests, Rules(), PlainSandbox(), 60.0)).verdict for source in (RIGHT, FIRST)]
    assert verdicts == [common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_WRONG]


async def test_the_same_seed_makes_the_same_cases() -> None:
    first, again = [await generated(problem(RIGHT, SORTS, BY_HAND, FIRST)) for _ in range(2)]
    assert first == again


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (problem(RIGHT, SORTS, BY_HAND, RIGHT, special=True), "special_judge"),
        (problem(RIGHT, SORTS, BY_HAND), "too_few_references"),
        (problem(RIGHT, SORTS, BY_HAND, RIGHT, generator=""), "no_generator"),
        (problem(RIGHT, SORTS, BY_HAND, RIGHT, generator="1 / 0"), "bad_generator"),
        (problem(RIGHT, SORTS, BY_HAND, RIGHT, generator="print(1)"), "bad_generator"),
        (problem(RIGHT, SORTS, BY_HAND, RIGHT, generator="pass"), "bad_generator"),
        (problem(RIGHT, RIGHT, FIRST, FIRST), "too_few_valid_cases"),
        (problem("1 / 0", "1 / 0", RIGHT, RIGHT), "too_few_valid_cases"),
    ],
)
async def test_problems_that_go(given: Problem, rule: str) -> None:
    found = await generated(given)
    assert (found.rule, bool(found.reason)) == (rule, True)


async def test_a_reference_that_is_right_on_most_cases_only_fails_the_problem() -> None:
    strict = SelectionRules(num_cases=8, num_references=4, min_agree=3, min_valid=5, min_pass=4)
    negative = GENERATOR.replace("-100, 100", "-100, 100 if number % 2 else -1")
    found = await generated(problem(RIGHT, SORTS, BY_HAND, STARTS_AT_ZERO, generator=negative), strict)
    assert found.rule == "references_fail"
    assert "3 of 4" in found.reason


async def test_a_program_that_is_written_on_request() -> None:
    asked: list[str] = []

    async def write(statement: str) -> str:
        asked.append(statement)
        return GENERATOR

    generation = Generation(PlainSandbox(), RunRules(SMALL), write)
    found = await generation.generate(problem(RIGHT, SORTS, BY_HAND, RIGHT, generator=""))
    assert found.generator == GENERATOR
    assert not found.rule
    assert asked == ["Print the largest number."]


class Failing(PlainSandbox):
    """Answers with trouble of its own at first."""

    def __init__(self, num_failures: int, ending: Ending) -> None:
        super().__init__()
        self.left = num_failures
        self.ending = ending

    async def run(self, program: Program, deadline_s: float) -> Outcome:
        self.left -= 1
        if self.left >= 0 and self.left % 2:
            raise WorkerLostError("gone")
        return Outcome(self.ending, reason="no jail") if self.left >= 0 else await super().run(program, deadline_s)


async def test_trouble_of_the_sandbox_is_no_answer() -> None:
    good = problem(RIGHT, SORTS, BY_HAND, RIGHT)
    assert not (await generated(good, sandbox=Failing(2, Ending.SANDBOX_ERROR))).rule
    with pytest.raises(WorkerLostError):
        await generated(good, sandbox=Failing(1000, Ending.SANDBOX_ERROR))
    with pytest.raises(EnvironmentProblem):
        await generated(good, sandbox=Failing(1, Ending.UNSUPPORTED))


class Clocked(PlainSandbox):
    """Knows which program never ends."""

    async def run(self, program: Program, deadline_s: float) -> Outcome:
        if b"while True" in program.files["main.py"]:
            self.programs.append(program)
            return Outcome(Ending.TIMEOUT)
        return await super().run(program, deadline_s)


async def test_a_reference_that_is_always_late_is_given_up() -> None:
    sandbox = Clocked()
    found = await generated(problem(RIGHT, SORTS, BY_HAND, "while True: pass"), sandbox=sandbox)
    assert (found.rule, found.selection.num_passing) == ("", 3)
    assert sum(b"while True" in program.files["main.py"] for program in sandbox.programs) == 3


# The library, in a process of its own as in the sandbox.


def drawn(expression: str, number: int, count: int = 10) -> object:
    text = f"from cases import *; import json; print(json.dumps({expression}))"
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=Path(cases.__file__).parent,
        env={"SEED": f"7 {number} {count}"},
        capture_output=True,
        check=True,
        timeout=30,
    )
    return json.loads(done.stdout)


def test_the_library_draws_what_it_says() -> None:
    text = (
        "[[size(1, 1000), size(0, 9), size(5, 5), number, count], permutation(9), wholes(5, 0, 4, distinct=True),"
        " wholes(20, 0, 3, ordered=True), grid(2, 30, 'ab'),"
        " [tree(9, shape) for shape in ('random', 'path', 'star', 'binary')],"
        " graph(6, 9), graph(3, 99), real(0, 1, 2), word(3, 'z'), choice([4]), shuffled([1, 2])]"
    )
    first, last = drawn(text, 1), drawn(text, 10)
    assert first != last
    assert first == drawn(text, 1)
    for found, sizes in ((first, [1, 0, 5, 1, 10]), (last, [1000, 9, 5, 10, 10])):
        (given, order, distinct, ordered, rows, trees, edges, full, number, letters, chosen_, mixed) = found  # type: ignore[misc]
        assert given == sizes
        assert sorted(order) == list(range(1, 10))
        assert sorted(distinct) == [0, 1, 2, 3, 4]
        assert ordered == sorted(ordered)
        assert [len(row) for row in rows] == [30, 30]
        assert set("".join(rows)) == {"a", "b"}
        for tree in trees:
            assert len(_reached(tree)) == 9
            assert len(tree) == 8
        assert len({frozenset(edge) for edge in edges}) == 9
        assert len(_reached(edges)) == 6
        assert len(full) == 3
        assert 0 <= number <= 1
        assert (letters, chosen_, sorted(mixed)) == ("zzz", 4, [1, 2])


def _reached(edges: list[list[int]]) -> set[int]:
    found = {1}
    while more := {node for edge in edges if found & set(edge) for node in edge} - found:
        found |= more
    return found
