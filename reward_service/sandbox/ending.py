"""How a run ended, from what the kernel says and from what we did to it. Pure."""

import os
import signal
from dataclasses import dataclass

from crescendo.reward_service.sandbox.protocol import Ending, Limits

# The kernel counts CPU time for its limit by ticks, for its report exactly: the two differ by a few percent, on a
# virtual machine that shares its cores by up to a fifth. A SIGKILL that nobody here sent is then the limit's.
CPU_TOLERANCE = 0.1
KILLED_TOLERANCE = 0.25


@dataclass(frozen=True)
class Facts:
    """What is known when nothing of a program is left. status: as waitpid gives it."""

    status: int
    cpu_s: float
    has_started: bool
    trouble: str = ""  # what the jail said instead of starting the program
    our_reason: Ending | None = None  # why we killed it, if we did
    is_out_of_memory: bool = False  # the kernel killed something in its cgroup


def ending_of(facts: Facts, limits: Limits) -> tuple[Ending, int, str]:
    """(ending, exit status or signal number, reason for people)."""
    code = os.waitstatus_to_exitcode(facts.status)
    if facts.is_out_of_memory and code != 0:
        return Ending.MEMORY, signal.SIGKILL, _REASONS[Ending.MEMORY].format(limits=limits)
    if facts.our_reason is not None:
        return facts.our_reason, signal.SIGKILL, _REASONS[facts.our_reason].format(limits=limits)
    if not facts.has_started:
        return Ending.SANDBOX_ERROR, 0, facts.trouble or f"the jail ended ({code}) before the program started"
    is_at_limit = code == -signal.SIGKILL and facts.cpu_s >= limits.cpu_s * (1 - KILLED_TOLERANCE)
    if is_at_limit or facts.cpu_s > limits.cpu_s * (1 + CPU_TOLERANCE):
        return Ending.TIMEOUT, signal.SIGKILL, f"used up {limits.cpu_s:g} s of CPU time"
    if code >= 0:
        return Ending.EXITED, code, ""
    return Ending.SIGNALED, -code, f"ended by {_signal_name(-code)}"


_REASONS = {
    Ending.TIMEOUT: "ran longer than {limits.wall_s:g} s",
    Ending.OUTPUT: "wrote more than {limits.output_bytes} bytes",
    Ending.SANDBOX_ERROR: "the jail did not start the program in time",
    Ending.MEMORY: "used more than {limits.memory_bytes} bytes of memory",
}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
