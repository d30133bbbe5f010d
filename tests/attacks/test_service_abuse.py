"""Abuse of the sandbox as a service: bad requests, floods, clients and processes that go away in the middle."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from crescendo.common.errors import DeadlineError, OverloadError, RequestError, WorkerLostError
from crescendo.reward_service.sandbox.opening import open_sandbox
from crescendo.reward_service.sandbox.options import Floor, SandboxOptions
from crescendo.reward_service.sandbox.protocol import Boundary, Ending, Jail, Limits, Program, Sandbox
from tests.attacks.conftest import missing, open_jail
from tests.attacks.suite import readable_interpreter
from tests.attacks.test_attacks import processes_at_rest, what_is_left

pytestmark = pytest.mark.asyncio(loop_scope="session")

HELLO = Program("python", {"main.py": b"print('hello')"})
SLEEP = Program("python", {"main.py": b"import time; time.sleep(60)"}, limits=Limits(wall_s=60))
WAIT_S = 60.0
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "program",
    [
        Program("python", {"../main.py": b""}),
        Program("python", {"/etc/passwd": b""}),
        Program("python", {"main.py": b"", "a/../../b": b""}),
        Program("python", {"main.py": b"", ".hidden": b""}),
        Program("python", {"main.py": b"", "a\0b": b""}),
        Program("python", {"main.py": b""}, environment={"LD_PRELOAD": "x"}),
        Program("python", {"main.py": b""}, environment={"PYTHONPATH": "x"}),
        Program("python", {"main.py": b""}, arguments=("a\0b",)),
        Program("python", {"main.py": b""}, limits=Limits(wall_s=float("inf"))),
        Program("python", {"main.py": b""}, limits=Limits(memory_bytes=-1)),
        Program("python", {"main.py": b""}, stdin=bytes(40 << 20)),
        Program("python", {f"f{number}": b"" for number in range(100)}),
    ],
    ids=lambda program: "-".join(name[:12] for name in list(program.files)[:2]),
)
async def test_malformed_programs_are_refused(attacked: tuple[str, Sandbox], program: Program) -> None:
    """A request that breaks a rule is an error that names the field, and nothing runs."""
    _, sandbox = attacked
    with pytest.raises(RequestError) as caught:
        await sandbox.run(program, WAIT_S)
    assert caught.value.field


async def test_unknown_profile_is_unsupported(attacked: tuple[str, Sandbox]) -> None:
    """It does not run, and says so."""
    _, sandbox = attacked
    assert (await sandbox.run(Program("cobol", {"main.py": b""}), WAIT_S)).ending is Ending.UNSUPPORTED
    assert (await sandbox.run(Program("python", {"other.py": b""}), WAIT_S)).ending is Ending.UNSUPPORTED


async def test_many_at_once_all_end(attacked: tuple[str, Sandbox]) -> None:
    """More than there is place for: all are answered, in turn."""
    jail, sandbox = attacked
    count = 8 if jail == "runsc" else 40
    outcomes = await asyncio.gather(*(sandbox.run(HELLO, WAIT_S * 2) for _ in range(count)))
    assert [outcome.stdout for outcome in outcomes] == [b"hello\n"] * count


async def test_client_that_goes_away_leaves_nothing(attacked: tuple[str, Sandbox]) -> None:
    """A cancelled call kills its program."""
    _, sandbox = attacked
    before = await processes_at_rest(sandbox)
    running = asyncio.create_task(sandbox.run(SLEEP, WAIT_S))
    await asyncio.sleep(0.3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await what_is_left(before) == []
    assert (await sandbox.run(HELLO, WAIT_S)).stdout == b"hello\n"


async def test_service_deadline_is_no_verdict(attacked: tuple[str, Sandbox]) -> None:
    """The caller's deadline and a full sandbox are faults of the service; the program's own limit is an outcome."""
    _, sandbox = attacked
    with pytest.raises(DeadlineError):
        await sandbox.run(SLEEP, 1.0)
    busy = asyncio.create_task(sandbox.run(SLEEP, WAIT_S))
    await asyncio.sleep(0.1)
    with pytest.raises(OverloadError) as caught:
        await sandbox.run(HELLO, 0.2)
    assert caught.value.retry_after_s > 0
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)


async def test_zygote_that_dies_is_replaced() -> None:
    """Programs at work are lost, as a fault and not as a score; the next one runs."""
    sandbox = await open_jail("namespaces-warm")
    try:
        running = asyncio.create_task(sandbox.run(SLEEP, WAIT_S))
        await asyncio.sleep(0.3)
        os.kill(sandbox.zygote_pid, signal.SIGKILL)  # type: ignore[attr-defined]
        with pytest.raises(WorkerLostError):
            await running
        assert (await sandbox.run(HELLO, WAIT_S)).stdout == b"hello\n"
    finally:
        await sandbox.close()


@pytest.mark.parametrize("jail", ["namespaces", "landlock"])
async def test_killed_server_leaves_no_orphan(jail: str) -> None:
    """SIGKILL of the executor in the middle of a run ends the zygote and the program."""
    interpreter = "" if jail == "namespaces" else readable_interpreter()
    command = [sys.executable, "-m", "tests.attacks.server_to_kill", jail, interpreter]
    server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    try:
        assert server.stdout is not None
        line = await asyncio.wait_for(server.stdout.readline(), WAIT_S)
        if not line.startswith(b"["):
            missing(line.decode())
        started = set(json.loads(line))
        assert started
    finally:
        server.kill()
        await server.communicate()
    left = started
    for _ in range(200):
        left = {pid for pid in left if is_alive(pid)}
        if not left:
            break
        await asyncio.sleep(0.05)
    assert left == set()


async def test_below_the_floor_nothing_runs() -> None:
    """A floor that this machine cannot reach: every program is unsupported, and the reason names what is missing."""
    options = SandboxOptions(floor=Floor(Boundary.KATA, Jail.LANDLOCK), jail="namespaces", programs=1)
    opened = await open_sandbox(options)
    outcome = await opened.sandbox.run(HELLO, WAIT_S)
    await opened.sandbox.close()
    assert outcome.ending is Ending.UNSUPPORTED
    assert outcome.stdout == b""
    assert Jail.NAMESPACES in opened.refusals


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
