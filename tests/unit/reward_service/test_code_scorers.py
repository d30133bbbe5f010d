"""The scorers that run programs: where the program is in a response, their values, and what they ask to be run."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.judge.messages import outcome_message, program_message, read_outcome, read_program
from crescendo.reward_service.sandbox.protocol import Boundary, Ending, Jail, Limits, Program
from crescendo.reward_service.sandbox.protocol import Outcome as Ended
from crescendo.reward_service.scorers import code, code_r1
from crescendo.reward_service.scorers.base import Outcome, Sample, SandboxScorer
from crescendo.reward_service.scorers.code_extract import last_code_block
from tests.fakes.plain_sandbox import PlainSandbox

CORRECT, WRONG = common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_WRONG
UNPARSABLE, UNSUPPORTED = common_pb2.VERDICT_UNPARSABLE, common_pb2.VERDICT_UNSUPPORTED
TIMEOUT, SANDBOX_ERROR = common_pb2.VERDICT_TIMEOUT, common_pb2.VERDICT_SANDBOX_ERROR

CHECK = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(5) == 6\ncheck(f)"
STDIO = json.dumps({"inputs": [str(n) for n in range(9)], "outputs": [str(2 * n) for n in range(9)]})
RIGHT = "def f(x):\n    return x + 1"
HALF = "def f(x):\n    return 2"
DOUBLE = "print(2 * int(input()))"


def fenced(source: str, tag: str = "python") -> str:
    return f"Here it is:\n```{tag}\n{source}\n```\nDone."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (fenced("a"), "a"),
        (fenced("a", ""), "a"),
        (fenced("a", "Python3"), "a"),
        (fenced("a", "cpp"), None),
        (fenced("a") + fenced("b", "text"), "a"),
        (fenced("a") + fenced("b"), "b"),
        (fenced("a") + "\n```python\nb", "a"),
        ("```python\na", None),
        ("````python\n```\na\n```\n````", "```\na\n```"),
        ("```python\na\n``\n```", "a\n``"),
        ("```python\n\n```", ""),
        ("   ```py\na\n  ```", "a"),
        ("    ```py\na\n    ```", None),
        ("```py`x\na\n```", None),
        ("`a`", None),
        ("", None),
    ],
)
def test_the_last_closed_block_of_the_language(text: str, found: str | None) -> None:
    assert last_code_block(text) == found


@given(st.text("`\npy x", max_size=60))
def test_any_text_has_a_block_or_none(text: str) -> None:
    found = last_code_block(text)
    assert found is None or found in text


async def scored(scorer: SandboxScorer, text: str, tests: str, **options: object) -> Outcome:
    sandbox, ended = PlainSandbox(), list[Ended]()
    sample = Sample(text, metadata={"tests": tests})
    for _ in range(scorer.max_steps):
        found = scorer.step(sample, scorer.options(case_s=0.5, run_s=1.0, **options), tuple(ended))
        if isinstance(found, Outcome):
            return found
        ended += [await sandbox.run(program, 10.0) for program in found]
    raise AssertionError("too many steps")


@pytest.mark.parametrize(
    ("source", "tests", "options", "raw", "verdict"),
    [
        (RIGHT, CHECK, {}, 1.0, CORRECT),
        (HALF, CHECK, {}, 0.0, WRONG),
        (HALF, CHECK, {"reward": "fraction"}, 0.5, WRONG),
        (RIGHT, CHECK, {"reward": "fraction"}, 1.0, CORRECT),
        (DOUBLE, STDIO, {}, 1.0, CORRECT),
        ("print(2 * int(input()) % 10)", STDIO, {}, 0.0, WRONG),
        ("print(2 * int(input()) % 10)", STDIO, {"reward": "fraction"}, 5 / 9, WRONG),
        ("while True: pass", STDIO, {}, 0.0, TIMEOUT),
        (RIGHT, '{"inputs": ["1"], "outputs": ["1"], "checker": "x"}', {}, 0.0, UNSUPPORTED),
        (RIGHT, "", {}, 0.0, UNSUPPORTED),
    ],
)
async def test_code(source: str, tests: str, options: dict[str, object], raw: float, verdict: int) -> None:
    found = await scored(code.SCORER, fenced(source), tests, **options)
    assert (found.verdict, found.raw) == (verdict, pytest.approx(raw)), found.detail


async def test_a_response_without_code_runs_nothing() -> None:
    assert (await scored(code.SCORER, "def f(x): return x + 1", CHECK)).verdict == UNPARSABLE
    late = "I first try\n" + fenced(RIGHT) + "</think> I give up."
    assert (await scored(code.SCORER, late, CHECK, after="</think>")).verdict == UNPARSABLE


def test_one_failed_case_decides_before_the_others_run() -> None:
    sample, options = Sample(fenced(DOUBLE), (STDIO,)), code.CodeOptions()
    first = code.step(sample, options, ())
    assert not isinstance(first, Outcome)
    assert len(first) == 2
    right = [Ended(Ending.EXITED, stdout=str(2 * n).encode()) for n in range(9)]
    second = code.step(sample, options, right[:2])
    third = code.step(sample, options, right[:4])
    assert not isinstance(second, Outcome)
    assert not isinstance(third, Outcome)
    assert [len(second), len(third)] == [2, 4]
    failed = code.step(sample, options, [right[0], right[0]])
    assert isinstance(failed, Outcome)
    assert failed.verdict == WRONG
    passed = code.step(sample, options, right)
    assert isinstance(passed, Outcome)
    assert passed.verdict == CORRECT
    share = code.step(sample, code.CodeOptions(reward="fraction"), ())
    assert not isinstance(share, Outcome)
    assert len(share) == 9


THOUGHT = "<think>\nhm </answer> ```\n</think>\n"


@pytest.mark.parametrize(
    ("text", "raw", "verdict"),
    [
        (f"{THOUGHT}<answer>{fenced(RIGHT)}</answer>\n", 1.1, CORRECT),
        (f"{THOUGHT}<answer>{fenced(HALF)}</answer>", 0.1, WRONG),
        (f"{THOUGHT}<answer>{fenced('while True: pass')}</answer>", 0.1, TIMEOUT),
        (f"{THOUGHT}<answer>no code</answer>", -1.1, UNPARSABLE),
        (f"{THOUGHT}<answer>{fenced(' ')}</answer>", -1.1, UNPARSABLE),
        (f"{THOUGHT}{fenced(RIGHT)}", -1.1, UNPARSABLE),
        (f"{fenced(RIGHT)}", -1.1, UNPARSABLE),
        (f"<answer>{fenced(RIGHT)}</answer>", -1.1, UNPARSABLE),
        (f"<answer>{fenced(RIGHT)}</answer>{THOUGHT}", -1.1, UNPARSABLE),
        (f"<think><answer>{fenced(RIGHT)}</think></answer>", -1.1, UNPARSABLE),
        (f"{THOUGHT}<answer>{fenced(RIGHT)}</answer> And so on.", -1.1, UNPARSABLE),
        (f"{THOUGHT.removeprefix('<think>')}<answer>{fenced(RIGHT)}</answer>", -1.1, UNPARSABLE),
    ],
)
async def test_code_r1(text: str, raw: float, verdict: int) -> None:
    found = await scored(code_r1.SCORER, text, CHECK)
    assert (found.raw, found.verdict) == (raw, verdict), found.detail
    assert code_r1.SCORER.low <= found.raw <= code_r1.SCORER.high


async def test_code_r1_where_the_prompt_opens_the_thought() -> None:
    text = f"hm</think><answer>{fenced(RIGHT)}</answer>"
    assert (await scored(code_r1.SCORER, text, CHECK, prefilled=True)).raw == 1.1


@pytest.mark.parametrize("scorer", [code.SCORER, code_r1.SCORER], ids=lambda scorer: scorer.name)
@pytest.mark.parametrize(
    ("ending", "verdict"), [(Ending.UNSUPPORTED, UNSUPPORTED), (Ending.SANDBOX_ERROR, SANDBOX_ERROR)]
)
def test_what_did_not_run_says_nothing_about_the_program(scorer: SandboxScorer, ending: Ending, verdict: int) -> None:
    sample = Sample(f"<think></think><answer>{fenced(RIGHT)}</answer>", (CHECK,))
    found = scorer.step(sample, scorer.options(), [Ended(ending, reason="below the floor")])
    assert found == Outcome(0.0, verdict, "below the floor")  # type: ignore[arg-type]


def test_programs_and_outcomes_survive_the_pipe() -> None:
    program = Program("python", {"main.py": b"1"}, b"in", ("a",), {"SEED": "1"}, Limits(wall_s=3.0))
    message = program_message(program)
    assert read_program(message.FromString(message.SerializeToString()), Limits(wall_s=9.0)) == program
    ended = Ended(
        *(Ending.SIGNALED, 9, b"o", b"e", True, False, 0.1, 0.2, 5),
        boundary=Boundary.GVISOR,
        jail=Jail.RUNSC,
        reason="killed",
    )
    assert read_outcome(outcome_message(ended)) == ended


def test_a_worker_cannot_ask_for_more_than_the_service_allows() -> None:
    greedy = Program("python", {}, limits=Limits(*([10.0**9] * 2), *([10**12] * 6)))
    assert read_program(program_message(greedy), Limits()).limits == Limits()
    message = program_message(Program("python", {}, limits=Limits()))
    message.limits.wall_seconds = math.nan
    with pytest.raises(Exception, match="wall_s"):
        read_program(message, Limits())
