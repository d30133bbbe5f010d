"""A sandbox without walls, for tests of what is made of outcomes: each program is a child process in a fresh folder.

For programs of the tests' own only.
"""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from crescendo.reward_service.sandbox.protocol import Boundary, Ending, Jail, Outcome, Posture, Program


class PlainSandbox:
    """Runs programs as this user, with this interpreter, without its site packages; keeps what it was given."""

    def __init__(self) -> None:
        self.programs: list[Program] = []

    @property
    def posture(self) -> Posture:
        """None to speak of."""
        return Posture(Boundary.SHARED_KERNEL, Jail.PROCESS, False, "rlimit")

    async def run(self, program: Program, deadline_s: float) -> Outcome:
        """Runs it once; see sandbox.protocol."""
        program.check()
        self.programs.append(program)
        with tempfile.TemporaryDirectory() as folder:
            _write(program, folder)
            return await self._run(program, folder, min(deadline_s, program.limits.wall_s))

    async def _run(self, program: Program, folder: str, limit_s: float) -> Outcome:
        started_s = time.perf_counter()
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-S", "-E", "-s", "main.py", *program.arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=folder,
            env=dict(program.environment),
            start_new_session=True,
        )
        is_late = False
        talk = asyncio.ensure_future(child.communicate(program.stdin))
        try:
            await asyncio.wait_for(asyncio.shield(talk), limit_s)
        except TimeoutError:
            is_late = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            stdout, stderr = await talk
        status = child.returncode or 0
        ending = Ending.TIMEOUT if is_late else Ending.SIGNALED if status < 0 else Ending.EXITED
        size = program.limits.output_bytes
        return Outcome(
            ending,
            abs(status),
            stdout[:size],
            stderr[:size],
            len(stdout) > size,
            len(stderr) > size,
            time.perf_counter() - started_s,
        )

    async def close(self) -> None:
        """Nothing is left."""


def _write(program: Program, folder: str) -> None:
    for name, data in program.files.items():
        Path(folder, name).write_bytes(data)
