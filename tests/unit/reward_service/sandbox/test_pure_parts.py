"""The contract, the wire, endings, boundaries, floors and cgroup files, without a jail."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.errors import ConfigError, RequestError
from crescendo.reward_service.sandbox.boundary import KernelFacts, boundary_of
from crescendo.reward_service.sandbox.cgroups import CgroupPool
from crescendo.reward_service.sandbox.ending import Facts, ending_of
from crescendo.reward_service.sandbox.inside import wire
from crescendo.reward_service.sandbox.options import Floor
from crescendo.reward_service.sandbox.protocol import Boundary, Ending, Jail, Limits, Outcome, Program

TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40)


@given(
    arguments=st.lists(TEXT, max_size=4),
    environment=st.dictionaries(TEXT, TEXT, max_size=4),
    files=st.dictionaries(TEXT, st.binary(max_size=200), max_size=4),
    rest=st.binary(max_size=20),
)
def test_a_program_arrives_as_it_was_sent(
    arguments: list[str], environment: dict[str, str], files: dict[str, bytes], rest: bytes
) -> None:
    """And what follows it stays unread."""
    reader, writer = os.pipe()
    start = wire.Start("main.py", "/folder", (1, 2, 3, 4), tuple(arguments), environment)
    os.write(writer, start.encode(files) + rest)
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as stream:
        found, contents = wire.read_start(reader)
        assert stream.read() == rest
    assert vars(found) == vars(start)
    assert contents == files


def test_a_message_that_ends_early() -> None:
    """The executor died while it wrote."""
    reader, writer = os.pipe()
    os.write(writer, wire.Start("main.py", "", (1, 2, 3, 4), (), {}).encode({"main.py": b"x" * 9})[:-1])
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0), pytest.raises(EOFError):
        wire.read_start(reader)


LIMITS = Limits(wall_s=2, cpu_s=1)
KILLED = int(signal.SIGKILL)


@pytest.mark.parametrize(
    ("facts", "ending", "code"),
    [
        (Facts(0, 0.1, True), Ending.EXITED, 0),
        (Facts(7 << 8, 0.1, True), Ending.EXITED, 7),
        (Facts(int(signal.SIGSEGV), 0.1, True), Ending.SIGNALED, int(signal.SIGSEGV)),
        (Facts(KILLED, 0.1, True), Ending.SIGNALED, KILLED),
        (Facts(KILLED, 0.97, True), Ending.TIMEOUT, KILLED),
        (Facts(0, 1.5, True), Ending.TIMEOUT, KILLED),
        (Facts(KILLED, 0.1, True, our_reason=Ending.TIMEOUT), Ending.TIMEOUT, KILLED),
        (Facts(KILLED, 0.1, True, our_reason=Ending.OUTPUT), Ending.OUTPUT, KILLED),
        (Facts(KILLED, 0.1, True, is_out_of_memory=True), Ending.MEMORY, KILLED),
        (Facts(0, 0.1, True, is_out_of_memory=True), Ending.EXITED, 0),
        (Facts(1 << 8, 0.1, False, trouble="mount: refused"), Ending.SANDBOX_ERROR, 0),
        (Facts(0, 0.1, False), Ending.SANDBOX_ERROR, 0),
    ],
)
def test_endings(facts: Facts, ending: Ending, code: int) -> None:
    """Each cause is told from the others, and all but an exit have a reason."""
    found, found_code, reason = ending_of(facts, LIMITS)
    assert (found, found_code) == (ending, code)
    assert bool(reason) is (ending is not Ending.EXITED)


def test_clean_exit_needs_all_of_the_output() -> None:
    """Status 0 with something cut off is no clean exit."""
    assert Outcome(Ending.EXITED).is_clean_exit
    assert not Outcome(Ending.EXITED, code=1).is_clean_exit
    assert not Outcome(Ending.EXITED, is_stdout_truncated=True).is_clean_exit
    assert not Outcome(Ending.TIMEOUT).is_clean_exit


VIRTUAL = "flags\t: fpu hypervisor sse\n"
SHARED_ROOT = "1 0 0:1 / / rw - virtiofs kataShared rw\n"


@pytest.mark.parametrize(
    ("facts", "boundary"),
    [
        (KernelFacts("6.1.0", "Linux version 6.1.0", "flags\t: fpu sse\n", ""), Boundary.SHARED_KERNEL),
        (KernelFacts("4.4.0", "[   0.000000] Starting gVisor...", "", ""), Boundary.GVISOR),
        (KernelFacts("4.4.0", "", "", ""), Boundary.SHARED_KERNEL),
        (KernelFacts("6.1.0", "Starting gVisor...", "", ""), Boundary.SHARED_KERNEL),
        (KernelFacts("6.1.0", "", VIRTUAL, SHARED_ROOT), Boundary.KATA),
        (KernelFacts("6.1.0", "", VIRTUAL, ""), Boundary.SHARED_KERNEL),
        (KernelFacts("6.1.0", "", "flags\t: fpu\n", SHARED_ROOT), Boundary.SHARED_KERNEL),
    ],
)
def test_a_boundary_takes_two_facts(facts: KernelFacts, boundary: Boundary) -> None:
    """What is not proved is the weakest."""
    assert boundary_of(facts)[0] is boundary


def test_floors() -> None:
    """Both axes must be reached; a floor is written as the two, with a slash."""
    floor = Floor.parse("shared-kernel/namespaces")
    assert floor.is_met_by(Boundary.SHARED_KERNEL, Jail.NAMESPACES)
    assert floor.is_met_by(Boundary.KATA, Jail.RUNSC)
    assert not floor.is_met_by(Boundary.KATA, Jail.LANDLOCK)
    assert not Floor.parse("gvisor/landlock").is_met_by(Boundary.SHARED_KERNEL, Jail.NAMESPACES)
    for text in ("", "gvisor", "gvisor/process", "gvisor/landlock/x", "none/landlock"):
        with pytest.raises(ConfigError) as caught:
            Floor.parse(text)
        assert caught.value.field == "sandbox.floor"


@given(st.text(max_size=60))
def test_file_names_stay_below_the_folder(name: str) -> None:
    """A name that is let through has no way up, and is neither absolute nor hidden."""
    try:
        Program("python", {name: b""}).check()
    except RequestError:
        return
    parts = name.split("/")
    assert 1 <= len(parts) <= 4
    assert all(part and not part.startswith((".", "-")) for part in parts)


MOUNT_V2 = "30 1 0:26 / {root} rw - cgroup2 cgroup2 rw\n"


def fake_v2(folder: Path, controllers: str) -> tuple[str, str]:
    """Files as a cgroup version 2 mount has them: (mountinfo, cgroup)."""
    root = folder / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").write_text(controllers)
    (root / "cgroup.subtree_control").write_text(controllers)
    (folder / "mountinfo").write_text(MOUNT_V2.format(root=root))
    (folder / "own").write_text("0::/\n")
    return str(folder / "mountinfo"), str(folder / "own")


def test_cgroup_v2_without_its_controllers_is_refused(tmp_path: Path) -> None:
    """The reason names them."""
    mounts, own = fake_v2(tmp_path, "cpu io")
    with pytest.raises(OSError, match="memory and pids are needed"):
        CgroupPool.open(1, mounts, own)


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    """As in many containers."""
    (tmp_path / "mountinfo").write_text("1 0 0:1 / / rw - ext4 /dev/vda rw\n")
    (tmp_path / "own").write_text("0::/\n")
    with pytest.raises(OSError, match="no cgroup file system"):
        CgroupPool.open(1, str(tmp_path / "mountinfo"), str(tmp_path / "own"))


def test_cgroup_v2_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot is limited, tells what was killed in it, and is set aside when something stays in it."""
    mounts, own = fake_v2(tmp_path, "cpu memory pids")
    make = Path.mkdir

    def mkdir(path: Path, *arguments: int, **options: bool) -> None:
        make(path, *arguments, **options)
        values = {"cgroup.procs": "", "memory.current": "0", "memory.events": "oom 0\noom_kill 0\n", "memory.peak": "0"}
        for name, value in (values | {"memory.max": "max", "pids.max": "max", "memory.swap.max": "max"}).items():
            (path / name).write_text(value)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    pool = CgroupPool.open(1, mounts, own)
    slot = pool.take()
    slot.limit(1 << 20, 3)
    assert (slot.memory / "memory.max").read_text() == str(1 << 20)
    assert (slot.memory / "pids.max").read_text() == "3"
    assert not slot.was_out_of_memory()
    (slot.memory / "memory.events").write_text("oom 1\noom_kill 1\n")
    assert slot.was_out_of_memory()
    pool.give_back(slot)
    assert pool.take() is slot
    assert not slot.was_out_of_memory()
    (slot.memory / "memory.current").write_text(str(64 << 20))
    pool.give_back(slot)
    assert pool.num_quarantined == 1
    other = pool.take()
    assert other is not slot
    (other.memory / "cgroup.procs").write_text("1\n")
    pool.give_back(other)
    assert pool.num_quarantined == 2
    for used in (slot, other):
        for descriptor in used.descriptors:
            os.close(descriptor)
