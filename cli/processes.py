"""Child processes of `crescendo run`, none of which outlives it.

Three nets, each for what the one before misses: a child gets SIGTERM from the kernel when the command dies
(PDEATHSIG); `Child.end` asks, waits, then kills the child's process group; and the command adopts orphans of
its children (PR_SET_CHILD_SUBREAPER), so that `end_descendants` finds what a killed child left running.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Makes this process the parent of orphaned descendants, so that it can end them."""
    _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass
class Child:
    """A started process, leader of a session and process group of its own."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def pid(self) -> int:
        """Process id, and id of its group."""
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    @property
    def cpu_s(self) -> float:
        """CPU time that it has used; 0 once it has ended."""
        try:
            used = psutil.Process(self.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(used.user + used.system)

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def wait(self, limit_s: float) -> bool:
        """Waits for its end; False when limit_s passed first."""
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def signal(self, number: int) -> None:
        """Signals the process (not its group); nothing if it has ended."""
        if self.is_alive:
            self.process.send_signal(number)

    def end(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL of the whole group after grace_s."""
        self.signal(signal.SIGTERM)
        self.wait(grace_s)
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.wait(grace_s)


def spawn(arguments: Sequence[str], log: Path) -> Child:
    """Starts `python -m arguments...` with its output appended to log.

    Call it from the main thread: PDEATHSIG fires when the thread that forked ends.
    """
    parent = os.getpid()

    def in_child() -> None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # the parent died between fork and prctl
            os._exit(1)

    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=in_child,
        )
    return Child(process, log)


def end_descendants(grace_s: float) -> list[str]:
    """Ends every process that is still below this one; returns their names.

    Waits grace_s for them to end by themselves, then sends SIGTERM, then SIGKILL.
    """
    names: set[str] = set()
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            names |= _signal_all(number)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and _living():
            time.sleep(0.05)
        if not _living():
            break
    _reap()
    return sorted(names)


def _signal_all(number: int) -> set[str]:
    names = set()
    for child in psutil.Process().children(recursive=True):
        try:
            names.add(child.name())
            child.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    return names


def _living() -> bool:
    _reap()
    return bool(psutil.Process().children(recursive=True))


def _reap() -> None:
    """Collects ended children, adopted ones too; a zombie would look alive."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
