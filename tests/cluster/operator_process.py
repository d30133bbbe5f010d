"""The operator as a process of its own: started, killed, started again; with its log.

`controllers`: where every run's ControllerService answers, since there is no cluster DNS here (redirected_operator.py).
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


class Operator:
    """kubeconfig: of its service account, of the admin, or of a proxy; namespaces: none watches all."""

    def __init__(
        self,
        kubeconfig: Path,
        folder: Path,
        namespaces: Sequence[str] = (),
        *,
        controllers: str = "",
        resync_s: float = 3.0,
        **environment: str,
    ) -> None:
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._module = "tests.cluster.redirected_operator" if controllers else "crescendo.controller.operator"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "KUBECONFIG": str(kubeconfig),
            "CRESCENDO_IDENTITY": str(folder / "identity"),
            "CRESCENDO_WATCH_NAMESPACES": ",".join(namespaces),
            "CRESCENDO_RESYNC_S": str(resync_s),
            "CRESCENDO_HEALTH_PORT": "0",
            "CRESCENDO_METRICS_PORT": "0",
            "CONTROLLERS": controllers,
            **environment,
        }

    def start(self) -> None:
        """Starts it; does not wait. Without a preexec_fn: a fork while gRPC runs here hung before its exec."""
        with (self._folder / "operator.log").open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", self._module],
                env=self._environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL, as a lost node would; one that has ended is fine."""
        assert self._child is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def ended(self) -> bool:
        """Whether it is not there any more."""
        return self._child is None or self._child.poll() is not None

    def terminate(self, limit_s: float = 20.0) -> int:
        """SIGTERM, as a rollout would; its exit code."""
        assert self._child is not None
        self._child.terminate()
        return self._child.wait(limit_s)

    def resident_bytes(self) -> int:
        """Its resident memory."""
        assert self._child is not None
        return int(psutil.Process(self._child.pid).memory_info().rss)

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        assert self._child is not None
        times = psutil.Process(self._child.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def log(self) -> str:
        """What it has said, over all its starts."""
        return (self._folder / "operator.log").read_text(errors="replace")
