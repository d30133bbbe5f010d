"""What a worker process puts on before it reads model text, and what children of the service start with.

The jail is called `process`: resource limits, no privileges, no capabilities, no network where user
namespaces are permitted, no inherited descriptors, an allow-listed environment. The kernel is shared; files.py takes
the file system away where the kernel can.
"""

import contextlib
import ctypes
import os
import resource
import struct
from collections.abc import Mapping
from pathlib import Path

JAIL = "process"
BOUNDARY = "shared-kernel"
MIB = 1 << 20
MAX_DESCRIPTORS = 32

# Nothing else passes from the service's environment to the zygote and its workers.
ALLOWED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "TZ", "SYSTEMROOT")
FIXED_VARIABLES = {
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    # One thread: a process with threads can neither fork safely nor make a user namespace.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GRPC_ENABLE_FORK_SUPPORT": "0",  # as crescendo/__init__.py has it
}

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_CLONE_NEWIPC = 0x08000000
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def clean_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of processes that read model text: allow-listed names and fixed values."""
    kept = {name: inherited[name] for name in ALLOWED_VARIABLES if name in inherited}
    return kept | FIXED_VARIABLES


def die_with_parent(signal_number: int, parent: int = 0) -> None:
    """Asks the kernel for a signal when the thread that started this process ends; survives exec.

    parent: its process id, where it is known; a parent that ended before this call is then noticed too.
    """
    parent = parent or os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def hide_memory() -> None:
    """Keeps other processes of this user from reading this one's memory, environment and descriptors."""
    _prctl(_PR_SET_DUMPABLE, 0)


def leave_network() -> bool:
    """Moves this single-threaded process into its own user, network and IPC namespaces, if that is permitted.

    Children inherit them. Returns whether it worked: container profiles commonly forbid it.
    """
    return bool(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0)


def confine(memory_bytes: int) -> None:
    """Confines this process for good. memory_bytes: address space above what it has now."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    hide_memory()
    _drop_capabilities()
    for limit, value in (
        (resource.RLIMIT_AS, _address_space_bytes() + memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS),
        (resource.RLIMIT_NPROC, 0),  # no child processes; the kernel exempts uid 0
    ):
        _lower(limit, value)


def limit_cpu(seconds: float) -> None:
    """Allows so many more seconds of CPU time; a backstop to the pool's wall clock."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 2
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def close_descriptors(keep: int) -> None:
    """Closes every descriptor above 2 but one, and points 0, 1 and 2 at /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    open_now = [int(name) for name in os.listdir("/proc/self/fd")]
    for descriptor in open_now:
        if descriptor > 2 and descriptor != keep:
            with contextlib.suppress(OSError):  # the one that listed the folder is closed already
                os.close(descriptor)


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _drop_capabilities() -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset: could not drop capabilities")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")
