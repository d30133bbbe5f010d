"""The Linux calls that Python's standard library does not have: namespaces, mounts, capabilities, Landlock.

Thin and typed; each raises OSError with the call's name. Numbers and structures are the kernel's user interface
(clone(2), mount(2), pivot_root(2), capabilities(7), seccomp(2), landlock(7)).
"""

import ctypes
import os
import platform
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS = 1, 4, 8, 38
PR_SET_SECCOMP, PR_CAPBSET_DROP = 22, 24
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_MAX_CAPABILITY = 63

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_LANDLOCK_VERSION = 1
_LANDLOCK_PATH_BENEATH = 1

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]


def _check(result: int, call: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")
    return result


def unshare(flags: int) -> None:
    """Moves this process into new namespaces (its children, for CLONE_NEWPID)."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(descriptor: int, kind: int) -> None:
    """Moves this process (its children, for CLONE_NEWPID) into a namespace."""
    _check(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    kind_bytes = kind.encode() if kind else None
    result = _libc.mount(source.encode(), target.encode(), kind_bytes, ctypes.c_ulong(flags), options.encode())
    _check(result, f"mount({kind or 'bind'}, {target})")


def pivot_to_here() -> None:
    """Makes the working folder the root of this mount namespace, and lets the former root go."""
    number = _PIVOT_ROOT[platform.machine()]
    _check(_libc.syscall(number, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def prctl(option: int, value: int, argument: int = 0) -> None:
    """prctl(2)."""
    _check(_prctl(option, value, argument, 0, 0), f"prctl({option})")


def die_with_parent(signal_number: int) -> None:
    """Asks for a signal when the parent ends. A change of credentials may clear it: call it after."""
    parent = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def raise_capabilities() -> None:
    """Makes every permitted capability effective again, after setuid with PR_SET_KEEPCAPS."""
    header, state = _capability_header(), ctypes.create_string_buffer(24)
    _check(_libc.capget(header, state), "capget")
    words = list(struct.unpack("=6I", state.raw))
    words[0], words[3] = words[1], words[4]
    _check(_libc.capset(header, struct.pack("=6I", *words)), "capset")


def drop_bounding_set() -> None:
    """Empties the set of capabilities that a later exec could give; without CAP_SETPCAP it stays as it is."""
    for number in range(_MAX_CAPABILITY + 1):
        if _prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break  # the kernel knows no more, or does not let us


def drop_capabilities() -> None:
    """Empties all five capability sets; the ambient one goes with the permitted and inheritable ones."""
    drop_bounding_set()
    _check(_libc.capset(_capability_header(), bytes(24)), "capset")


def _capability_header() -> bytes:
    return struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)


def install_seccomp(program: bytes) -> None:
    """Loads a classic-BPF filter for good (seccomp.py builds it); needs no_new_privs."""
    code = ctypes.create_string_buffer(program, len(program))
    holder = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    fprog = ctypes.create_string_buffer(holder, len(holder))
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(fprog))


def landlock_abi() -> int:
    """Version of Landlock that the kernel offers here; 0: none, or a profile refuses it."""
    return max(0, int(_libc.syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)))


def landlock_ruleset(handled_fs: int, handled_net: int, scoped: int) -> int:
    """A new ruleset's descriptor: what it handles is refused unless a rule allows it."""
    attributes = struct.pack("=QQQ", handled_fs, handled_net, scoped)
    return _check(int(_libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0)), "landlock_create_ruleset")


def landlock_allow(ruleset: int, parent: int, access: int) -> None:
    """Allows access beneath a path, given as a descriptor."""
    attributes = struct.pack("=Qi", access, parent)
    result = _libc.syscall(_LANDLOCK_ADD, ruleset, _LANDLOCK_PATH_BENEATH, attributes, 0)
    _check(int(result), "landlock_add_rule")


def landlock_restrict(ruleset: int) -> None:
    """Confines this process and its children for good; needs no_new_privs."""
    _check(int(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0)), "landlock_restrict_self")
