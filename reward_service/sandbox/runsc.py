"""`runsc`: each program in a gVisor container of its own, with a cold interpreter.

The container's kernel is gVisor's, a process; only its few system calls reach the host. The boundary is verified from
inside: a probe asks the container's kernel who it is. Files come from bind mounts through gVisor's file proxy; there is
no network device at all. Needs no privilege (`--rootless`) where user namespaces are permitted.
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crescendo.common.errors import WorkerStartError
from crescendo.reward_service.sandbox.boundary import KernelFacts, boundary_of
from crescendo.reward_service.sandbox.protocol import Boundary, Program
from crescendo.reward_service.sandbox.runtime import INSIDE, PACKAGE_FOLDER, Runtime, package_file

_PROBE_S = 20.0
_DELETE_S = 10.0
_INNER_ID = 1000
_ASK = """
import ctypes, json, os
buffer = ctypes.create_string_buffer(65536)
length = ctypes.CDLL(None).klogctl(3, buffer, 65536)
print(json.dumps([os.uname().release, buffer.raw[: max(0, length)].decode(errors="replace")]))
"""


class Runsc:
    """A cold.Maker. `close` removes its folder."""

    def __init__(self, binary: str, runtime: Runtime) -> None:
        self.proof = ""
        self._runtime = runtime
        self._folder = Path(tempfile.mkdtemp(prefix="crescendo-runsc-"))
        (self._folder / "rootfs").mkdir()
        self._head = [binary, "--root", str(self._folder / "state"), "--network=none", "--ignore-cgroups"]
        self._head += ["--platform=ptrace"] + (["--rootless"] if os.geteuid() else [])

    @classmethod
    async def find(cls, interpreter: str) -> "Runsc":
        """With the `runsc` on PATH, after a probe; raises WorkerStartError with the reason."""
        binary = shutil.which("runsc")
        if binary is None:
            raise WorkerStartError("there is no `runsc` on PATH (Debian: package runsc)")
        maker = cls(binary, await Runtime.of(interpreter))
        try:
            await maker._verify()
        except BaseException:
            maker.close()
            raise
        return maker

    def command(self, program: Program, number: int, filter_descriptor: int) -> Sequence[str]:
        """Our own filter is installed from inside, after the interpreter's start."""
        inner = [self._runtime.interpreter, "-I", "-S", f"{INSIDE}/cold.py", PACKAGE_FOLDER, "filter"]
        return self._run(f"run-{number}", inner, program.limits.files_bytes)

    def user(self) -> int | None:
        """Our own: runsc itself shuts its processes in."""
        return None

    async def cleanup(self, number: int) -> None:
        """A container that was killed from outside is deleted; one that ended has deleted itself."""
        await asyncio.get_running_loop().run_in_executor(None, self._delete, f"run-{number}")

    def close(self) -> None:
        """Removes bundles and state."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _delete(self, name: str) -> None:
        if (self._folder / "state").exists() and any((self._folder / "state").glob(f"{name}*")):
            command = [*self._head, "delete", "--force", name]
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(command, capture_output=True, timeout=_DELETE_S, check=False)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _run(self, name: str, inner: Sequence[str], files_bytes: int) -> list[str]:
        bundle = self._folder / name
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(self._config(inner, files_bytes)))
        return [*self._head, "run", "--bundle", str(bundle), name]

    def _config(self, inner: Sequence[str], files_bytes: int) -> dict[str, Any]:
        """An OCI runtime configuration."""
        shown = {folder: folder for folder in self._runtime.folders} | self._runtime.files | {INSIDE: package_file()}
        mounts = [
            {"destination": name, "type": "bind", "source": file, "options": ["bind", "ro"]}
            for name, file in shown.items()
        ]
        mounts += [
            {"destination": name, "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}
            for name in self._runtime.masked
        ]
        scratch = ["nosuid", "nodev", "noexec", f"size={files_bytes}", "mode=0777"]
        mounts.append({"destination": "/work", "type": "tmpfs", "source": "tmpfs", "options": scratch})
        return {
            "ociVersion": "1.0.0",
            "hostname": "sandbox",
            "root": {"path": str(self._folder / "rootfs"), "readonly": True},
            "mounts": mounts,
            "process": {
                "terminal": False,
                "user": {"uid": _INNER_ID, "gid": _INNER_ID},
                "cwd": "/work",
                "env": ["LANG=C.UTF-8"],
                "args": list(inner),
                "capabilities": {},
                "noNewPrivileges": True,
            },
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
        }

    async def _verify(self) -> None:
        command = self._run("probe", [self._runtime.interpreter, "-I", "-S", "-c", _ASK], 1 << 20)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            answer, trouble = await asyncio.wait_for(process.communicate(), _PROBE_S)
            release, log = json.loads(answer)
        except (TimeoutError, ValueError):
            reason = "it did not answer in time" if process.returncode is None else trouble.decode(errors="replace")
            raise WorkerStartError(f"runsc cannot run a container here: {reason[-300:]}") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            await asyncio.get_running_loop().run_in_executor(None, self._delete, "probe")
        boundary, self.proof = boundary_of(KernelFacts(release, log, "", ""))
        if boundary is not Boundary.GVISOR:
            raise WorkerStartError(f"what runsc started is not gVisor: {self.proof}")
