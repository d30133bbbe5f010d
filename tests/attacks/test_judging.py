"""Every attack on judging, in each kind of jail: never judged correct, nothing told, nothing left, the next one judged.

The judge is the same in cold jails, which test_attacks.py covers.
"""

import os
from pathlib import Path

import pytest

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.judge.conduct import judge
from crescendo.reward_service.sandbox.protocol import Sandbox
from tests.attacks.judging import HONEST, RULES, JudgeCase, Watched, honest_tests, judge_cases, vaults
from tests.attacks.test_attacks import processes_at_rest, what_is_left

DEADLINE_S = 60.0
JAILS = ("namespaces-warm", "landlock-warm", "runsc")
# Where a run takes long, what may depend on the jail at all: one kind of test, and attacks on process and files.
SLOW_JAILS = ("runsc",)
PHYSICAL = ("closed_descriptors", "edited_tests", "flooded_output", "forged_answers", "killed_driver", "stopped_driver")
PAIRS = [
    pytest.param(jail, case, id=f"{jail}-{case.name}")
    for jail in JAILS
    for case in judge_cases()
    if jail not in SLOW_JAILS or case.name in PHYSICAL
]

pytestmark = pytest.mark.asyncio(loop_scope="session")


def library_state() -> dict[str, int]:
    """When each file of the interpreter's library was last changed."""
    return {path.name: path.stat().st_mtime_ns for path in Path(os.__file__).parent.glob("*.py")}


@pytest.mark.parametrize(("attacked", "case"), PAIRS, indirect=["attacked"])
async def test_an_attack_is_never_judged_correct(attacked: tuple[str, Sandbox], case: JudgeCase) -> None:
    jail, sandbox = attacked
    processes, library = await processes_at_rest(sandbox), library_state()
    for vault in vaults()[: 1 if jail in SLOW_JAILS else None]:
        watched = Watched(sandbox)
        found = await judge(case.program, vault.tests, case.rules, watched, DEADLINE_S)
        verdict = common_pb2.Verdict.Name(found.verdict).removeprefix("VERDICT_").lower()
        assert verdict in case.verdicts, f"{vault.kind}: {verdict}, {found.detail}"
        assert found.num_passed == 0, vault.kind
        assert any(case.program.encode() in seen for seen in watched.seen), "the candidate was never run"
        for token in vault.tokens:
            assert not any(token.encode() in seen for seen in watched.seen), f"{vault.kind}: an expected value got in"
    assert not await what_is_left(processes)
    assert library_state() == library
    honest = await judge(HONEST, honest_tests()[0], RULES, sandbox, DEADLINE_S)
    assert honest.is_correct, honest.detail


@pytest.mark.parametrize("attacked", JAILS, indirect=True)
async def test_honest_programs_pass_each_kind_of_test(attacked: tuple[str, Sandbox]) -> None:
    for tests in honest_tests():
        found = await judge(HONEST, tests, RULES, attacked[1], DEADLINE_S)
        assert found.is_correct, found.detail
