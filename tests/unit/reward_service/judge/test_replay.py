"""Checks that are run: against a stand-in for the candidate, in rounds."""

import pytest

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.judge.conduct import judge
from crescendo.reward_service.judge.functional import Budget
from crescendo.reward_service.judge.steps import Rules
from crescendo.reward_service.judge.verdicts import Judged
from tests.fakes.plain_sandbox import PlainSandbox

CORRECT, WRONG = common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_WRONG
TIMEOUT, UNSUPPORTED = common_pb2.VERDICT_TIMEOUT, common_pb2.VERDICT_UNSUPPORTED
RULES = Rules(Budget(case_s=0.3, total_s=2.0))
SECRET = "hunter2hunter2"

LOOP = f"""
def check(candidate):
    inputs = [[1, 2], [3, 4], [5, 6]]
    wanted = {{"{SECRET}": [3, 7, 11]}}
    for (a, b), right in zip(inputs, wanted["{SECRET}"]):
        assert candidate(a, b) == right, (a, b)

check(add)"""


async def judged(source: str, check: str, sandbox: PlainSandbox | None = None) -> Judged:
    return await judge(source, check, RULES, sandbox or PlainSandbox(), 30.0)


async def test_a_loop_takes_three_runs_and_keeps_the_expected_values_out() -> None:
    sandbox = PlainSandbox()
    found = await judged("def add(a, b):\n    return a + b", LOOP, sandbox)
    assert found == Judged(1, 1, CORRECT, "1 cases")
    checks = [program for program in sandbox.programs if SECRET.encode() in program.stdin]
    assert [program in checks for program in sandbox.programs] == [True, False, True]
    assert all(b"def add" not in program.stdin for program in checks)


@pytest.mark.parametrize(
    ("source", "verdict", "cause"),
    [
        ("def add(a, b):\n    return a - b", WRONG, "assertion failed (1, 2)"),
        ("def add(a, b):\n    return None", WRONG, "assertion failed"),
        ("def add(a, b):\n    1 / 0", WRONG, "ZeroDivisionError"),
        ("def add(a, b):\n    while True: pass", TIMEOUT, "not answered"),
        ("import os\nos._exit(0)", WRONG, "0 of 3 calls answered"),
        ("def add(a, b):\n    import os; os._exit(0)", WRONG, "0 of 3 calls answered"),
        ("def sub(a, b): pass", WRONG, "NameError"),
        (
            "def add(a, b):\n    class Yes(int):\n        def __eq__(self, other): return True\n    return Yes(0)",
            WRONG,
            "assertion failed",
        ),
    ],
)
async def test_wrong_candidates(source: str, verdict: int, cause: str) -> None:
    found = await judged(source, LOOP)
    assert (found.verdict, found.num_passed) == (verdict, 0)
    assert cause in found.detail


async def test_arguments_that_a_call_changes_are_seen_by_the_check() -> None:
    check = (
        "def check(candidate):\n    numbers = [3, 1, 2]\n    head = list_node([1, 2])\n"
        "    assert candidate(numbers, head) is None\n"
        "    assert numbers == [1, 2, 3] and is_same_list(head, list_node([1, 9]))\ncheck(arrange)"
    )
    right = "def arrange(numbers, head):\n    numbers.sort()\n    head.next = ListNode(9)"
    assert (await judged(right, check)).is_correct
    assert not (await judged("def arrange(numbers, head):\n    sorted(numbers)", check)).is_correct


async def test_a_check_may_expect_an_exception() -> None:
    check = (
        "def check(candidate):\n    try:\n        candidate(-1)\n    except ValueError:\n        pass\n"
        "    else:\n        assert False\n    assert candidate(4) == 2\ncheck(root)"
    )
    right = "def root(x):\n    if x < 0: raise ValueError(x)\n    return x ** 0.5"
    assert (await judged(right, check)).is_correct
    assert not (await judged("def root(x):\n    return 2", check)).is_correct
    assert not (await judged("def root(x):\n    raise KeyError(x)", check)).is_correct


async def test_calls_made_from_answers_take_more_rounds() -> None:
    check = "def check(f):\n    x = 1\n    for _ in range(3):\n        x = f(x)\n    assert x == 8\ncheck(f)"
    sandbox = PlainSandbox()
    assert (await judged("def f(x): return 2 * x", check, sandbox)).is_correct
    assert len(sandbox.programs) == 7
    longer = check.replace("range(3)", "range(30)").replace("8", "1 << 30")
    found = await judged("def f(x): return 2 * x", longer)
    assert found.verdict == UNSUPPORTED
    assert "rounds" in found.detail


async def test_a_check_that_draws_its_cases_draws_them_alike() -> None:
    check = (
        "import random\ndef check(candidate):\n    for _ in range(5):\n"
        "        n = random.randint(0, 10**9)\n        assert candidate(n) == n % 97\ncheck(f)"
    )
    assert (await judged("def f(x): return x % 97", check)).is_correct


@pytest.mark.parametrize(
    "check",
    [
        "def check(candidate):\n    for x in []:\n        assert candidate(x)\ncheck(f)",
        "def check(candidate):\n    while False: candidate(1)\ncheck(f)",
        "def check(candidate):\n    print(nothing)\ncheck(f)",
        "for x in [1]:\n    assert f(x)",
    ],
)
async def test_checks_that_test_nothing_never_pass(check: str) -> None:
    found = await judged("def f(x): return True", check)
    assert not found.is_correct
    assert found.verdict in (WRONG, UNSUPPORTED)


async def test_state_of_the_candidate_is_kept_between_calls() -> None:
    check = "def check(candidate):\n    for x in (1, 2, 3):\n        assert candidate() == x\ncheck(Counter_().next)"
    source = "class Counter_:\n    n = 0\n    def next(self):\n        self.n += 1\n        return self.n"
    assert (await judged(source, check)).is_correct


@pytest.mark.parametrize(
    "body",
    ["import os; os._exit(0)", "raise SystemExit", "raise KeyboardInterrupt", "import sys; sys.exit(0)", "return len"],
)
async def test_a_check_that_catches_everything_does_not_take_silence_for_an_answer(body: str) -> None:
    check = (
        "def check(candidate):\n    for x in (1, 2):\n        try:\n            assert candidate(x) == 1\n"
        "        except AssertionError:\n            raise\n        except:\n            pass\ncheck(f)"
    )
    assert not (await judged(f"def f(x):\n    {body}", check)).is_correct
    assert (await judged("def f(x):\n    return 1 / (2 - x)", check)).is_correct
