"""The sandbox's contract: what a program is, what becomes of it, and what a sandbox promises.

A judge makes a `Program`, awaits `Sandbox.run(program, deadline_s)` and reads an `Outcome`. The sandbox knows no
verdict and no expected output; it says how the program ended and what it wrote. An `Outcome` is about the program;
trouble of the service itself is raised (OverloadError: no place free in time, WorkerLostError: the jail's zygote died,
DeadlineError: the caller's deadline passed while the program ran), so that it is never mistaken for a score.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from crescendo.common.errors import RequestError

KIB, MIB = 1 << 10, 1 << 20

MAX_NUM_FILES = 64
MAX_INPUT_BYTES = 32 * MIB  # files and standard input of one program
MAX_ARGUMENT_BYTES = 64 * KIB

# A file's name is relative, in plain ASCII, and cannot leave the scratch folder.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}){0,3}", re.ASCII)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)

# What a program's environment may carry beyond the profile's own values. No name that a loader or an interpreter obeys.
ALLOWED_VARIABLES = frozenset({"TZ", "LANG", "LC_ALL", "COLUMNS", "LINES", "SEED"})


class Boundary(StrEnum):
    """Whose kernel answers the program's system calls; ordered from weak to strong."""

    SHARED_KERNEL = "shared-kernel"
    GVISOR = "gvisor"
    KATA = "kata"


class Jail(StrEnum):
    """What the program is shut into; ordered from weak to strong. `process` runs scorers, never programs."""

    PROCESS = "process"
    LANDLOCK = "landlock"
    NAMESPACES = "namespaces"
    RUNSC = "runsc"


class Ending(StrEnum):
    """How a run ended. Only the first two say that the program came to its end by itself."""

    EXITED = "exited"  # `code` is its exit status
    SIGNALED = "signaled"  # `code` is the signal's number
    TIMEOUT = "timeout"  # wall clock or CPU time used up
    MEMORY = "memory"  # killed at the memory limit; a MemoryError that the program reports itself is EXITED
    OUTPUT = "output"  # killed because it wrote more than `output_bytes`
    SANDBOX_ERROR = "sandbox_error"  # the jail could not be made or broke; says nothing about the program
    UNSUPPORTED = "unsupported"  # no jail at or above the floor, or no such profile: the program did not run


@dataclass(frozen=True)
class Limits:
    """What one run may use. `check` raises RequestError."""

    wall_s: float = 10.0
    cpu_s: float = 10.0  # of all its threads and processes
    memory_bytes: int = 256 * MIB  # above what the bare interpreter takes
    output_bytes: int = 1 * MIB  # of standard output and of standard error, each
    files_bytes: int = 16 * MIB  # everything in the scratch folder
    num_files: int = 256  # inodes in the scratch folder
    file_bytes: int = 16 * MIB  # the largest file it may write
    num_processes: int = 16  # processes and threads alive at once, itself included; `landlock`: threads only

    def check(self) -> None:
        """Raises RequestError unless every limit is a finite number above 0."""
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"limits.{name} is {value}; it must be a number above 0.", field=f"limits.{name}")


@dataclass(frozen=True)
class Program:
    """One program to run once.

    profile: name in `profiles`; files: relative name to contents, among them the profile's entry (`main.py`);
    arguments: after the program's name; stdin: all of its standard input; environment: see ALLOWED_VARIABLES.
    """

    profile: str
    files: Mapping[str, bytes]
    stdin: bytes = b""
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    def check(self) -> None:
        """Raises RequestError naming the field that breaks a rule."""
        self.limits.check()
        for name in self.files:
            if not _NAME.fullmatch(name):
                raise RequestError(
                    f"files: {name[:80]!r} is not a plain relative name.",
                    field="files",
                    fix="Use letters, digits, `_`, `-` and `.`, at most four parts, none starting with `.` or `-`.",
                )
        if len(self.files) > MAX_NUM_FILES:
            raise RequestError(f"files: {len(self.files)} of them; at most {MAX_NUM_FILES}.", field="files")
        if (size := sum(map(len, self.files.values())) + len(self.stdin)) > MAX_INPUT_BYTES:
            raise RequestError(f"files and stdin have {size} bytes; at most {MAX_INPUT_BYTES}.", field="files")
        if any("\0" in text for text in self.arguments):
            raise RequestError("arguments: one holds a NUL character.", field="arguments")
        if (size := sum(len(text.encode()) for text in self.arguments)) > MAX_ARGUMENT_BYTES:
            raise RequestError(f"arguments have {size} bytes; at most {MAX_ARGUMENT_BYTES}.", field="arguments")
        for name, value in self.environment.items():
            if name not in ALLOWED_VARIABLES or not _VARIABLE.fullmatch(name) or "\0" in value:
                raise RequestError(
                    f"environment: {name[:80]!r} is not allowed.",
                    field="environment",
                    fix=f"Allowed are {', '.join(sorted(ALLOWED_VARIABLES))}.",
                )


@dataclass(frozen=True)
class Posture:
    """Where programs run: reported in health, in metrics and with every outcome."""

    boundary: Boundary
    jail: Jail
    is_warm: bool  # forked from a zygote rather than started
    limits_by: str  # what bounds memory and processes: cgroup-v2 | cgroup-v1 | rlimit+poll | rlimit


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    ending: Ending
    code: int = 0  # exit status or signal number
    stdout: bytes = b""
    stderr: bytes = b""
    is_stdout_truncated: bool = False
    is_stderr_truncated: bool = False
    seconds: float = 0.0  # wall clock, from the program's start to its end
    cpu_seconds: float = 0.0
    peak_bytes: int = 0  # resident memory at its highest
    boundary: Boundary = Boundary.SHARED_KERNEL
    jail: Jail = Jail.PROCESS
    reason: str = ""  # for people; empty when it exited by itself

    @property
    def is_clean_exit(self) -> bool:
        """Exit status 0 and nothing cut off. Says nothing about whether its answer is right."""
        return (
            self.ending is Ending.EXITED
            and self.code == 0
            and not (self.is_stdout_truncated or self.is_stderr_truncated)
        )


class Sandbox(Protocol):
    """Runs programs, several at once, each in a fresh jail that nothing outlives."""

    @property
    def posture(self) -> Posture:
        """What programs run in."""

    async def run(self, program: Program, deadline_s: float) -> Outcome:
        """Runs a program once and returns when nothing of it is left.

        deadline_s: seconds from now for everything, the wait for a free place included; the program's own limit is
        `program.limits.wall_s`. Cancelling kills the run. Raises RequestError for a program that breaks the rules of
        `Program.check`; OverloadError, WorkerLostError and DeadlineError when the service is at fault.
        """

    async def close(self) -> None:
        """Kills what runs, and ends everything the sandbox started."""
