"""Functional tests judged end to end, with programs in child processes: right, wrong, and dishonest candidates."""

import json

import pytest

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.judge.checks import parse_check
from crescendo.reward_service.judge.conduct import judge
from crescendo.reward_service.judge.functional import Budget, functional_program, judge_functional
from crescendo.reward_service.judge.inside.channel import HEAD, VALUE
from crescendo.reward_service.judge.inside.wire import encode
from crescendo.reward_service.judge.steps import Rules
from crescendo.reward_service.judge.verdicts import Judged
from crescendo.reward_service.sandbox.protocol import Ending, Outcome
from tests.fakes.plain_sandbox import PlainSandbox

CORRECT, WRONG, TIMEOUT = common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_WRONG, common_pb2.VERDICT_TIMEOUT
SECRET = 90817263
CHECK = f"""def check(candidate):
    assert candidate(1) == 2
    assert candidate(2) == 3
    assert candidate(-7) == {SECRET}
check(Solution().f)"""
RIGHT = f"class Solution:\n    def f(self, x):\n        return {SECRET} if x < 0 else x + 1\n"
RULES = Rules(Budget(case_s=0.3, total_s=5.0))


async def judged(source: str, check: str = CHECK, rules: Rules = RULES) -> Judged:
    return await judge(source, check, rules, PlainSandbox(), 20.0)


async def test_a_right_solution_passes() -> None:
    assert await judged(RIGHT) == Judged(3, 3, CORRECT, "3 cases")


async def test_expected_values_never_enter() -> None:
    sandbox = PlainSandbox()
    assert (await judge(RIGHT.replace(str(SECRET), "0"), CHECK, RULES, sandbox, 20.0)).verdict == WRONG
    (program,) = sandbox.programs
    inside = b"".join(program.files.values()) + program.stdin + "".join(program.arguments).encode()
    assert encode(SECRET)[5:] not in inside
    assert str(SECRET).encode() not in inside
    assert b"assert candidate" not in inside


async def test_what_is_wrong_is_told() -> None:
    body = {
        "return 0": (0, WRONG, "not what the check expects"),
        "return x + 1": (2, WRONG, "not what the check expects"),
        "return [x for x in iter(int, 1)]": (0, TIMEOUT, "deadline"),
        "1 / 0": (0, WRONG, "ZeroDivisionError"),
        "return lambda: 0": (0, WRONG, "cannot travel"),
        "import os; os._exit(0)": (0, WRONG, "0 of 3 calls answered"),
        "import sys; sys.exit(0)": (0, WRONG, "SystemExit"),
    }
    for text, (num_passed, verdict, cause) in body.items():
        found = await judged(f"class Solution:\n    def f(self, x):\n        {text}\n")
        assert (found.num_passed, found.verdict) == (num_passed, verdict), text
        assert cause in found.detail, text


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("", "NameError"),
        ("class Solution: pass", "AttributeError"),
        ("class Solution:\n    f = 3", "TypeError"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "0 of 3"),
        ("x = '\0'", "ValueError|SyntaxError"),
        ("while True: pass", "deadline"),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "Exception"),
    ],
)
async def test_a_candidate_that_cannot_be_loaded(source: str, cause: str) -> None:
    found = await judged(source)
    assert found.num_passed == 0
    assert any(part in found.detail for part in cause.split("|")), found.detail


async def test_one_late_case_does_not_take_the_others_with_it() -> None:
    source = RIGHT.replace("return", "while x == 1: pass\n        return")
    found = await judged(source)
    assert (found.num_passed, found.num_cases, found.verdict) == (2, 3, TIMEOUT)


async def test_a_candidate_that_disarms_the_clock_loses_the_run() -> None:
    source = (
        "import signal\nclass Solution:\n    def f(self, x):\n"
        "        signal.setitimer(signal.ITIMER_REAL, 0)\n        while True: pass"
    )
    found = await judged(source, rules=Rules(Budget(case_s=0.2, total_s=0.6)))
    assert (found.num_passed, found.verdict) == (0, TIMEOUT)


async def test_what_is_printed_is_not_an_answer() -> None:
    found = await judged(RIGHT.replace("return", "print('PASSED', flush=True); return"))
    assert found.is_correct


async def test_names_that_solutions_use_are_there() -> None:
    source = (
        "class Solution:\n    def f(self, root: Optional[TreeNode], k: int) -> List[int]:\n"
        "        q = deque([root]); heappush([], 1); bisect_left([1], 1); Counter('a'); gcd(2, 4); inf; pow(2, 3, 5)\n"
        "        accumulate([1]); lru_cache(None); ascii_lowercase; reduce(lambda a, b: a, [1]); math.sqrt(4)\n"
        "        return TreeNode(k, root.left)"
    )
    check = (
        "def check(candidate):\n"
        "    assert is_same_tree(candidate(root = tree_node([1, 2]), k = 9), tree_node([9, 2]))\n"
        "check(Solution().f)"
    )
    assert (await judged(source, check)).is_correct


@pytest.mark.parametrize(
    ("source", "num_passed"),
    [
        ("def swap(a, b): return b, a", 2),
        ("class Solution:\n    def swap(self, a, b): return [b, a]", 2),
        ("def swap(a, b): return a, b", 0),
        ("def swop(a, b): return b, a", 0),
    ],
)
async def test_calls_and_results_as_apps_has_them(source: str, num_passed: int) -> None:
    tests = {"fn_name": "swap", "inputs": [[1, 2], ["x", None]], "outputs": [[2, 1], [[None, "x"]]]}
    found = await judged(source, json.dumps(tests))
    assert (found.num_passed, found.num_cases) == (num_passed, 2)


# What a stream can be made to hold, without any program.


def outcome(frames: bytes, **changes: object) -> Outcome:
    return Outcome(**{"ending": Ending.EXITED, "stdout": frames, **changes})  # type: ignore[arg-type]


def answer(number: int, value: object) -> bytes:
    payload = encode(value)
    return HEAD.pack(number, VALUE, len(payload)) + payload


RIGHT_FRAMES = [answer(0, 2), answer(1, 3), answer(2, SECRET)]


def test_all_answers_in_order_and_nothing_else_pass() -> None:
    assert judge_functional(parse_check(CHECK), outcome(b"".join(RIGHT_FRAMES))).is_correct


@pytest.mark.parametrize(
    "frames",
    [
        b"",
        b"".join(RIGHT_FRAMES[:2]),
        b"".join(RIGHT_FRAMES) + b"!",
        b"".join(RIGHT_FRAMES) + answer(2, SECRET),
        b"".join(RIGHT_FRAMES) + HEAD.pack(3, VALUE, 10),
        b"".join(RIGHT_FRAMES[1:]),
        RIGHT_FRAMES[0] + RIGHT_FRAMES[0] + RIGHT_FRAMES[1] + RIGHT_FRAMES[2],
        b"PASSED\n" + b"".join(RIGHT_FRAMES),
        b"".join(RIGHT_FRAMES)[:-1],
        b"".join([*RIGHT_FRAMES[:2], HEAD.pack(2, b"P", 0)]),
        b"".join([*RIGHT_FRAMES[:2], HEAD.pack(2, VALUE, 3) + b"zzz"]),
    ],
    ids=range(11),
)
def test_any_other_stream_fails(frames: bytes) -> None:
    assert not judge_functional(parse_check(CHECK), outcome(frames)).is_correct


@pytest.mark.parametrize(
    "changes",
    [
        {"ending": Ending.TIMEOUT},
        {"ending": Ending.SIGNALED, "code": 9},
        {"ending": Ending.MEMORY},
        {"ending": Ending.OUTPUT},
        {"is_stdout_truncated": True},
    ],
    ids=str,
)
def test_a_run_that_the_driver_did_not_end_fails(changes: dict[str, object]) -> None:
    assert not judge_functional(parse_check(CHECK), outcome(b"".join(RIGHT_FRAMES), **changes)).is_correct


def test_hostile_answers_cost_nothing() -> None:
    tests = parse_check("def check(candidate):\n    assert abs(candidate(1) - 0.5) < 1e-6\ncheck(f)")
    for value in (1 << 100_000, "0.5", [[]] * 1000, {"a": 1}, None, float("nan"), True, b"", 10**4000):
        assert not judge_functional(tests, outcome(answer(0, value))).is_correct
    for value in (1 << 100_000, [1 << 100_000, "x"], None):
        payload = encode(value)
        found = judge_functional(tests, outcome(HEAD.pack(0, b"E", len(payload)) + payload))
        assert found.num_passed == 0


def test_a_program_is_within_the_sandbox_rules() -> None:
    tests = parse_check(CHECK)
    functional_program(RIGHT, tests.entry, tests.calls, Budget()).check()
