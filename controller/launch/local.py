"""Plain subprocesses of the run: the reward service and its executor.

Each child gets an allow-listed environment, its own session, a log file and a ready file with its address;
it dies with the controller (the service sets PR_SET_PDEATHSIG itself).
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from dataclasses import dataclass
from pathlib import Path

from crescendo.common.errors import WorkerStartError
from crescendo.common.rpc.identity import VARIABLE as IDENTITY
from crescendo.common.rpc.server import ADDRESS_VARIABLE
from crescendo.common.service import ServiceSpec

ALLOWED_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")
IDENTIFIED = (IDENTITY, ADDRESS_VARIABLE)  # on a cluster, for every role but the executor, which holds no key
POLL_S = 0.02


def write_private(path: Path, text: str) -> None:
    """Writes a file that only this user can read: specs carry the run's token."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


@dataclass
class LocalProcess:
    """A started child. address: of its gRPC server."""

    process: Process
    address: str

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.returncode is None

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL of its process group after grace_s."""
        if self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), grace_s)
        except TimeoutError:
            os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()


async def start_local(module: str, spec: ServiceSpec, control: Path, deadline_s: float) -> LocalProcess:
    """Starts `python -m module <role>` and waits for its ready file; raises WorkerStartError."""
    spec_file = control / f"{spec.worker_id}.spec.json"
    ready_file = control / f"{spec.worker_id}.ready"
    ready_file.unlink(missing_ok=True)
    write_private(spec_file, spec.to_json())
    allowed = ALLOWED_ENVIRONMENT if spec.role == "executor" else ALLOWED_ENVIRONMENT + IDENTIFIED
    environment = {name: os.environ[name] for name in allowed if name in os.environ}
    log_path = Path(spec.run_folder) / "logs" / f"{spec.worker_id}.log"
    log_file = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, spec.role, "--spec-file", str(spec_file), "--ready-file", str(ready_file),
            stdin=asyncio.subprocess.DEVNULL, stdout=log_file, stderr=log_file, env=environment, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(log_file)
    deadline = asyncio.get_running_loop().time() + deadline_s
    while not ready_file.exists():
        if process.returncode is not None:
            raise WorkerStartError(f"{spec.worker_id} ended with code {process.returncode}.", fix=f"See {log_path}.")
        if asyncio.get_running_loop().time() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise WorkerStartError(f"{spec.worker_id} was not ready within {deadline_s:.0f} s.", fix=f"See {log_path}.")
        await asyncio.sleep(POLL_S)
    return LocalProcess(process, ready_file.read_text().strip())
