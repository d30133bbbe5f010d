"""The system-call filter: an allow list, compiled to classic BPF. Pure.

An allow list, because a new kernel brings new calls: what this file does not name does not exist for a candidate
(ENOSYS, on which C libraries fall back), however new the kernel. What it names was chosen by running CPython's own
tests of the pure modules; what is missing on purpose is listed in docs/security.md. A call of a foreign
architecture (i386, x32) kills the process.
"""

import errno
import platform
import struct
from dataclasses import dataclass

from crescendo.reward_service.sandbox.inside.syscall_numbers import NUMBERS

# linux/bpf_common.h, linux/seccomp.h, linux/audit.h
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # audit number, column in NUMBERS
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_X32_BIT = 0x40000000

_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_CLONE_THREAD = 0x00010000

NOT_HERE = errno.ENOSYS
_FORKING = ("fork", "vfork")
_STARTING = ("execve",)
# Where nothing may be written, these are refused too: Landlock does not cover modes and times, and a candidate may own
# files of the server, whose user it shares.
_CHANGING_FILES = (
    *("chmod", "fchmod", "fchmodat", "utimensat", "truncate", "ftruncate", "fallocate", "copy_file_range"),
    *("rename", "renameat", "renameat2", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat"),
    *("symlink", "symlinkat", "link", "linkat"),
)


@dataclass(frozen=True)
class Only:
    """A call is allowed only when an argument, masked, is one of some values; otherwise it fails with `refusal`."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    refusal: int = errno.EPERM


# Arguments that reach out of the process, or into drivers.
_CONDITIONS: dict[str, tuple[Only, ...]] = {
    # Descriptors and flags only: locks on the runtime's files would be a channel between runs.
    "fcntl": (Only(1, (0, 1, 2, 3, 4, 1030, 1032), refusal=errno.EACCES),),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: no TIOCSTI, no driver.
    "ioctl": (Only(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451), refusal=errno.ENOTTY),),
    "prctl": (Only(0, (15, 16)),),  # PR_SET_NAME, PR_GET_NAME
    # Limits of this process only: a process of the same user would obey otherwise.
    "prlimit64": (Only(0, (0,)),),
    # A connected stream pair inside the process. A datagram socket could send to a path or an abstract name.
    "socketpair": (Only(0, (1,)), Only(1, (1,), mask=0xF)),
    "socket": (Only(0, (), refusal=errno.EACCES),),
    # No MSG_OOB and the like matter here; what matters is that no socket with a peer outside exists.
}


def build(*, may_fork: bool, may_exec: bool = False, has_scratch: bool = True, machine: str = "") -> bytes:
    """The filter's instructions, eight bytes each.

    has_scratch: whether there is a folder to write in; machine: as platform.machine() says, KeyError if unknown.
    """
    audit, column = _ARCHITECTURES[machine or platform.machine()]
    program = [
        _instruction(_LOAD, _ARCHITECTURE_OFFSET),
        _instruction(_JUMP_EQUAL, audit, 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER_OFFSET),
    ]
    if column == 0:
        program += [_instruction(_JUMP_AT_LEAST, _X32_BIT, 0, 1), _instruction(_RETURN, _KILL_PROCESS)]
    conditions = _CONDITIONS | {"clone": (_clone_rule(may_fork),)}
    refused: tuple[str, ...] = (() if may_fork else _FORKING) + (() if may_exec else _STARTING)
    refused += () if has_scratch else _CHANGING_FILES
    for name, numbers in NUMBERS.items():
        number = numbers[column]
        if number < 0 or name == "clone3":
            continue  # clone3's flags lie in memory, out of a filter's sight: ENOSYS makes C libraries use clone
        if name in refused:
            body = [_instruction(_RETURN, _ERRNO | errno.EPERM)]
        else:
            body = _allowed_if(conditions.get(name, ()))
        program += [_instruction(_JUMP_EQUAL, number, 0, len(body)), *body]
    program.append(_instruction(_RETURN, _ERRNO | NOT_HERE))
    return b"".join(program)


def _clone_rule(may_fork: bool) -> Only:
    if may_fork:
        return Only(0, (0,), mask=_NAMESPACE_FLAGS)
    return Only(0, (_CLONE_THREAD,), mask=_NAMESPACE_FLAGS | _CLONE_THREAD)


def _allowed_if(rules: tuple[Only, ...]) -> list[bytes]:
    """Instructions that end in a return. Arguments are compared by their low half: all of these are C ints."""
    body: list[bytes] = []
    for rule in rules:
        body.append(_instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * rule.argument))
        if rule.mask != 0xFFFFFFFF:
            body.append(_instruction(_AND, rule.mask))
        for place, value in enumerate(rule.values):
            body.append(_instruction(_JUMP_EQUAL, value, len(rule.values) - place, 0))
        body.append(_instruction(_RETURN, _ERRNO | rule.refusal))
    return [*body, _instruction(_RETURN, _ALLOW)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
