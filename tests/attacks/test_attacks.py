"""Every case, in every jail that is here, warm and cold: its verdict, the host afterwards, and the next run."""

import asyncio
import platform
import time

import pytest

from crescendo.reward_service.sandbox.protocol import Ending, Limits, Program, Sandbox
from tests.attacks.document import DOCUMENT, document
from tests.attacks.host import Host, cgroup_members, processes_below
from tests.attacks.suite import JAILS, Case, load_cases

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the programs make x86-64 system calls"),
]

SETTLE_S = 5.0
DEADLINE_S = 60.0
GROUPS_THAT_LEAVE = ("writes", "cross_run")
# What the next program must find: nothing of the one before, and an interpreter as it should be.
CLEAN = b"""
import json, os, random, sys, threading, time
assert sorted(set(os.listdir(".")) - {"__pycache__"}) == ["main.py"], os.listdir(".")
assert json.loads(json.dumps([1])) == [1] and len("ab") == 2 and time.time() > 1e9 and 0 <= random.random() < 1
assert len(os.environ) <= 6, dict(os.environ)
assert threading.active_count() == 1
assert not any("planted" in str(name) for name in sys.modules)
print("clean")
"""


# Our own jails are the same cold and warm, but for the interpreter: every third case says whether cold ones hold too.
PAIRS = [
    pytest.param(jail, case, id=f"{jail}-{case.name}")
    for jail in JAILS
    for number, case in enumerate(load_cases())
    if not jail.endswith("-cold") or number % 3 == 0
]


@pytest.mark.parametrize(("attacked", "case"), PAIRS, indirect=["attacked"])
async def test_attack(attacked: tuple[str, Sandbox], host: Host, case: Case) -> None:
    """The attack is held, leaves nothing, and the next program notices nothing."""
    jail, sandbox = attacked
    before = await processes_at_rest(sandbox)
    values = host.values | {"ZYGOTE_PID": str(getattr(sandbox, "zygote_pid", 0) or 1)}
    outcome = await sandbox.run(case.program(values), DEADLINE_S)
    problems = case.expected_of(jail).broken_by(outcome)
    if case.differs:
        again = await sandbox.run(case.program(values), DEADLINE_S)
        problems += ["two runs said the same"] if again.stdout == outcome.stdout else []
    problems += await what_is_left(before)
    problems += host.traces(outcome.stdout + outcome.stderr)
    assert not problems, f"{problems}\n{outcome}"
    if not sandbox.posture.is_warm and case.group not in GROUPS_THAT_LEAVE:
        return  # each program has an interpreter and a jail from nothing: only what a host keeps could be left
    following = await sandbox.run(Program("python", {"main.py": CLEAN}, limits=Limits(wall_s=20)), DEADLINE_S)
    assert (following.ending, following.stdout) == (Ending.EXITED, b"clean\n"), following


async def processes_at_rest(sandbox: Sandbox) -> set[int]:
    """Processes below this one when the sandbox has its ready children again."""
    for _ in range(int(SETTLE_S / 0.005)):
        if getattr(sandbox, "is_settled", True):
            break
        await asyncio.sleep(0.005)
    return processes_below()


async def what_is_left(before: set[int]) -> list[str]:
    """Processes and cgroup members that stay after an attack.

    The sandbox itself keeps a zygote and as many ready children as before it, under other process ids.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        now = processes_below()
        members = cgroup_members()
        if len(now) <= len(before) and len(members) <= 2:  # a ready child is a member of two version 1 groups
            return []
        if time.monotonic() > deadline:
            return [f"processes: {sorted(now - before)}, cgroups: {members}"]
        await asyncio.sleep(0.02)


async def test_suite_is_large_enough() -> None:
    """The published size, and every list of the reference has cases."""
    groups = {case.group for case in load_cases()}
    assert len(load_cases()) >= 80
    assert groups >= {"limits", "reads", "writes", "network", "cross_run", "kernel", "hacking"}


async def test_security_document_is_fresh() -> None:
    """docs/security.md has the table of these cases."""
    text = DOCUMENT.read_text()
    assert text == document(text), "stale: run `python -m tests.attacks.document`"
