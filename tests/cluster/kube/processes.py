"""Child processes of a test cluster: each with a log, each ended with its parent."""

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Run in a child before its program: the kernel then ends it with its parent."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """Starts programs from one folder and ends them all, the newest first. prefix: a command that starts them."""

    def __init__(self, programs: Path, logs: Path, prefix: Sequence[str] = ()) -> None:
        self._programs = programs
        self._prefix = tuple(prefix)
        self._logs = logs
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        logs.mkdir(parents=True, exist_ok=True)

    def start(
        self, name: str, arguments: Sequence[str], *, cwd: Path, environment: dict[str, str] | None = None
    ) -> int:
        """Starts a program; returns its process id."""
        with (self._logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [*self._prefix, str(self._programs / name), *arguments],
                cwd=cwd, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        self._running.append((name, child))
        return child.pid

    def check(self) -> None:
        """Raises when one has ended, with the end of its log."""
        for name, child in self._running:
            if child.poll() is not None:
                tail = (self._logs / f"{name}.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{name} ended with code {child.returncode}:\n{tail}")

    def stop(self, grace_s: float = 3.0) -> None:
        """Ends all."""
        for _, child in reversed(self._running):
            child.terminate()
        for _, child in reversed(self._running):
            try:
                child.wait(grace_s)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        self._running.clear()
