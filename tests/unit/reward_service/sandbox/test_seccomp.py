"""The filter, run instruction by instruction as the kernel would."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.reward_service.sandbox.inside import seccomp
from crescendo.reward_service.sandbox.inside.syscall_numbers import NUMBERS

X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS


def verdict(program: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int = X86_64) -> int:
    """What a program returns for a call: a plain interpreter of the five kinds of instruction it uses."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(value % 2**64 for value in padded))
    instructions = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = instructions[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(f"instruction {code:#x}")


STRICT = seccomp.build(may_fork=False, machine="x86_64")
FORKING = seccomp.build(may_fork=True, machine="x86_64")


def number(name: str) -> int:
    """On x86-64."""
    return NUMBERS[name][0]


@pytest.mark.parametrize("name", ["read", "write", "mmap", "futex", "exit_group", "getrandom", "rt_sigaction"])
def test_ordinary_calls_are_allowed(name: str) -> None:
    """Without a look at their arguments."""
    assert verdict(STRICT, number(name), (1, 2, 3, 4, 5, 6)) == ALLOW


@given(call=st.integers(0, 0x3FFFFFFF))
def test_what_is_not_named_does_not_exist(call: int) -> None:
    """However new the kernel."""
    named = {numbers[0] for numbers in NUMBERS.values()}
    if call not in named:
        assert verdict(FORKING, call) == ENOSYS


@given(call=st.integers(0, 0xFFFFFFFF), architecture=st.integers(0, 0xFFFFFFFF))
def test_foreign_calls_kill(call: int, architecture: int) -> None:
    """Another architecture, or x32's numbers."""
    if architecture != X86_64:
        assert verdict(FORKING, call, architecture=architecture) == KILL
    assert verdict(FORKING, call | 0x40000000) == KILL


def test_processes_and_programs() -> None:
    """Forking is a property of the jail; a namespace flag is refused in each; clone3 cannot be seen through."""
    thread, sigchld, new_user = 0x3D0F00, 17, 0x10000000
    assert verdict(STRICT, number("clone"), (thread,)) == ALLOW
    assert verdict(STRICT, number("clone"), (sigchld,)) == EPERM
    assert verdict(STRICT, number("fork")) == EPERM
    assert verdict(FORKING, number("fork")) == ALLOW
    assert verdict(FORKING, number("clone"), (sigchld,)) == ALLOW
    for program in (STRICT, FORKING):
        assert verdict(program, number("clone"), (thread | new_user,)) == EPERM
        assert verdict(program, number("clone3")) == ENOSYS
        assert verdict(program, number("execve")) == EPERM
    assert verdict(seccomp.build(may_fork=True, may_exec=True, machine="x86_64"), number("execve")) == ALLOW


@pytest.mark.parametrize(
    ("name", "arguments", "is_allowed"),
    [
        ("socketpair", (1, 1), True),
        ("socketpair", (1, 1 | 0x80000), True),
        ("socketpair", (1, 2), False),
        ("socketpair", (1, 5), False),
        ("socketpair", (2, 1), False),
        ("socket", (1, 1), False),
        ("prlimit64", (0,), True),
        ("prlimit64", (1,), False),
        ("prctl", (15,), True),
        ("prctl", (4,), False),
        ("prctl", (22,), False),
        ("ioctl", (0, 0x5401), True),
        ("ioctl", (0, 0x5412), False),
        ("ioctl", (0, 0x5401 | 1 << 32), True),  # the kernel too reads 32 bits
        ("fcntl", (3, 1), True),
        ("fcntl", (3, 6), False),
        ("fcntl", (3, 1024), False),
    ],
)
def test_arguments_that_reach_out(name: str, arguments: tuple[int, ...], is_allowed: bool) -> None:
    """Conditions on arguments."""
    assert (verdict(STRICT, number(name), arguments) == ALLOW) is is_allowed


@pytest.mark.parametrize("name", ["chmod", "fchmodat", "utimensat", "rename", "unlink", "mkdir", "ftruncate"])
def test_nothing_changes_files_without_a_scratch_folder(name: str) -> None:
    """Landlock leaves modes and times to the file's owner, who may be the server."""
    assert verdict(seccomp.build(may_fork=False, has_scratch=False, machine="x86_64"), number(name)) == EPERM
    assert verdict(STRICT, number(name)) == ALLOW


def test_other_architecture() -> None:
    """AArch64 has its own numbers and no x32."""
    program = seccomp.build(may_fork=False, machine="aarch64")
    assert verdict(program, NUMBERS["read"][1], architecture=AARCH64) == ALLOW
    assert verdict(program, NUMBERS["execve"][1], architecture=AARCH64) == EPERM
    assert verdict(program, NUMBERS["read"][1], architecture=X86_64) == KILL
    with pytest.raises(KeyError):
        seccomp.build(may_fork=False, machine="mips")
