"""The posture of a running program, seen from outside through /proc: what it is, not what it says it is."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from crescendo.reward_service.sandbox.protocol import Ending, Limits, Program, Sandbox
from tests.attacks.host import processes_below

pytestmark = pytest.mark.asyncio(loop_scope="session")

NAME = "posture-probe"
CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
PROGRAM = f"""
import ctypes, time
ctypes.CDLL(None).prctl(15, b"{NAME}", 0, 0, 0)
time.sleep(60)
""".encode()
APPEARS_S = 20.0
OURS = Path("/proc/self/ns")


async def test_posture(attacked: tuple[str, Sandbox]) -> None:
    """No capability, no new privilege, a filter, namespaces of its own, three descriptors, another user."""
    jail, sandbox = attacked
    if jail == "runsc":
        pytest.skip("a container's processes are inside gVisor's kernel: the host has none of them to look at")
    program = Program("python", {"main.py": PROGRAM}, limits=Limits(wall_s=60))
    running = asyncio.create_task(sandbox.run(program, 60))
    try:
        process = await find_process()
        status = fields_of(process)
        assert [status[name] for name in CAPABILITY_SETS] == ["0" * 16] * 5
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert {path.name for path in (process / "fd").iterdir()} == {"0", "1", "2"}
        assert set(status["Uid"].split()) == {status["Uid"].split()[0]}
        if os.geteuid() == 0:
            assert "0" not in status["Uid"].split()
        assert b"ATTACKS_SECRET" not in (process / "environ").read_bytes()
        assert b"ATTACKS_SECRET" not in (process / "cmdline").read_bytes()
        assert int(limits_of(process)["Max core file size"]) == 0
        if not jail.startswith("landlock"):
            shared = [
                name
                for name in NAMESPACES
                if os.readlink(process / "ns" / name) == os.readlink(f"/proc/self/ns/{name}")
            ]
            assert shared == []
            assert len(status["NSpid"].split()) >= 2
            mounts = (process / "mountinfo").read_text().splitlines()
            writable = [line.split()[4] for line in mounts if "rw" in line.split()[5].split(",")]
            assert set(writable) <= {"/work"}, writable
        if sandbox.posture.limits_by.startswith("cgroup"):
            assert "crescendo-sandbox-" in (process / "cgroup").read_text()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    deadline = time.monotonic() + 5  # a killed namespace takes a moment to die
    while is_alive(process):
        assert time.monotonic() < deadline, "it outlived its run"
        await asyncio.sleep(0.05)


def is_alive(process: Path) -> bool:
    try:
        return not fields_of(process)["State"].startswith(("Z", "X"))
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_outcome_says_where(attacked: tuple[str, Sandbox]) -> None:
    """Boundary and jail are in every result."""
    jail, sandbox = attacked
    outcome = await sandbox.run(Program("stdin-judge", {"main.py": b"print(input()[::-1])"}, stdin=b"abc\n"), 60)
    assert (outcome.ending, outcome.stdout) == (Ending.EXITED, b"cba\n")
    assert outcome.jail == jail.partition("-")[0].replace("bubblewrap", "namespaces")
    assert outcome.boundary == sandbox.posture.boundary


async def find_process() -> Path:
    """The folder in /proc of the running program."""
    deadline = time.monotonic() + APPEARS_S
    while time.monotonic() < deadline:
        for pid in processes_below():
            if name_of(pid) == NAME:
                return Path("/proc", str(pid))
        await asyncio.sleep(0.02)
    raise AssertionError("the program did not appear")


def name_of(pid: int) -> str:
    """A process's own name; empty if it is gone."""
    try:
        return Path("/proc", str(pid), "comm").read_text().strip()
    except OSError:
        return ""


def fields_of(process: Path) -> dict[str, str]:
    """/proc/<pid>/status."""
    lines = (process / "status").read_text().splitlines()
    return {line.partition(":")[0]: line.partition(":")[2].strip() for line in lines}


def limits_of(process: Path) -> dict[str, str]:
    """Soft limits by name."""
    lines = (process / "limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[0] for line in lines}
