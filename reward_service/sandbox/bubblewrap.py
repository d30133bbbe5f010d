"""`namespaces` by bubblewrap: one `bwrap` process and a cold interpreter a run. To compare our own jail with."""

import os
import shutil
from collections.abc import Sequence

from crescendo.common.errors import WorkerStartError
from crescendo.reward_service.sandbox.protocol import Program
from crescendo.reward_service.sandbox.runtime import INSIDE, PACKAGE_FOLDER, Runtime, package_file
from crescendo.reward_service.sandbox.warm import CANDIDATE_UID

_INNER_ID = "1000"


class Bubblewrap:
    """A cold.Maker."""

    def __init__(self, binary: str, runtime: Runtime) -> None:
        self._runtime = runtime
        self._binds: list[str] = []
        for folder in runtime.folders:
            self._binds += ["--ro-bind", folder, folder]
        for folder in runtime.masked:
            self._binds += ["--tmpfs", folder, "--remount-ro", folder]
        for name, file in runtime.files.items():
            self._binds += ["--ro-bind", file, name]
        self._binds += ["--ro-bind", package_file(), INSIDE]
        self._head = [
            *(binary, "--unshare-all", "--uid", _INNER_ID, "--gid", _INNER_ID, "--cap-drop", "ALL", "--clearenv"),
            *("--die-with-parent", "--new-session", "--hostname", "sandbox"),
        ]

    @classmethod
    async def find(cls, interpreter: str) -> "Bubblewrap":
        """With the `bwrap` on PATH; raises WorkerStartError if there is none."""
        binary = shutil.which("bwrap")
        if binary is None:
            raise WorkerStartError("there is no `bwrap` on PATH (Debian: package bubblewrap)")
        return cls(binary, await Runtime.of(interpreter))

    def command(self, program: Program, number: int, filter_descriptor: int) -> Sequence[str]:
        """Size is limited; bubblewrap has no limit on inodes."""
        scratch = [
            "--size",
            str(program.limits.files_bytes),
            "--tmpfs",
            "/work",
            "--chdir",
            "/work",
            "--remount-ro",
            "/",
        ]
        inner = [self._runtime.interpreter, "-I", "-S", f"{INSIDE}/cold.py", PACKAGE_FOLDER]
        return [*self._head, *self._binds, *scratch, "--seccomp", str(filter_descriptor), "--", *inner]

    def user(self) -> int | None:
        """Root becomes nobody of importance first: mapped to 1000 inside, it would still be root outside."""
        return CANDIDATE_UID if os.geteuid() == 0 else None

    async def cleanup(self, number: int) -> None:
        """bwrap's end ends its PID namespace, and with it everything."""

    def close(self) -> None:
        """Nothing is shared."""
