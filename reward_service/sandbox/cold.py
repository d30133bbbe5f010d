"""What the cold sandboxes share: a command that makes its own jail, fed through standard input, watched, killed.

Each program costs the start of an interpreter. `bubblewrap` and `runsc` say which command.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Protocol

from crescendo.common.errors import DeadlineError, OverloadError, WorkerLostError
from crescendo.reward_service.sandbox.capture import Capture, sealed_file
from crescendo.reward_service.sandbox.ending import Facts, ending_of
from crescendo.reward_service.sandbox.inside import seccomp
from crescendo.reward_service.sandbox.profiles import PROFILES
from crescendo.reward_service.sandbox.protocol import Ending, Outcome, Posture, Program
from crescendo.reward_service.sandbox.run import start_of

RETRY_S = 0.5
_DEATH_S = 10.0
_START_S = 30.0
_STARTED = b"\x06"  # inside/cold.py
# The command loads it before it starts the interpreter, so it has to allow execve: of the files in the jail, that is.
_FILTER = seccomp.build(may_fork=True, may_exec=True)


class Maker(Protocol):
    """How a jail is made around an interpreter."""

    def command(self, program: Program, number: int, filter_descriptor: int) -> Sequence[str]:
        """The command whose child runs `inside/cold.py`.

        number: different for each run; filter_descriptor: a file with the system-call filter, which it may load.
        """

    def user(self) -> int | None:
        """User id to run the command as; None: our own."""

    async def cleanup(self, number: int) -> None:
        """Removes what the command leaves behind when it is killed."""

    def close(self) -> None:
        """Removes what all runs shared."""


class ColdSandbox:
    """See protocol.Sandbox. Holds nothing between runs."""

    def __init__(self, maker: Maker, posture: Posture, concurrency: int) -> None:
        self._maker = maker
        self._posture = posture
        self._places = asyncio.Semaphore(concurrency)
        self._number = 0

    @property
    def posture(self) -> Posture:
        """What programs run in."""
        return self._posture

    async def close(self) -> None:
        """Nothing lives between runs but files."""
        self._maker.close()

    async def run(self, program: Program, deadline_s: float) -> Outcome:
        """See protocol.Sandbox.run."""
        program.check()
        profile = PROFILES.get(program.profile)
        if profile is None or profile.entry not in program.files:
            reason = f"no profile {program.profile!r}, or its entry file is missing"
            return Outcome(Ending.UNSUPPORTED, boundary=self.posture.boundary, jail=self.posture.jail, reason=reason)
        has_place = False
        try:
            async with asyncio.timeout(deadline_s):
                async with self._places:
                    has_place = True
                    self._number += 1
                    return await self._run_alone(program, self._number)
        except TimeoutError:
            if has_place:
                raise DeadlineError(f"the program had not ended when its caller's {deadline_s:g} s were over") from None
            raise OverloadError(f"no place became free within {deadline_s:g} s.", retry_after_s=RETRY_S) from None

    async def _run_alone(self, program: Program, number: int) -> Outcome:
        limits = program.limits
        loop = asyncio.get_running_loop()
        reasons: list[Ending] = []
        started_s = time.monotonic()

        def kill(reason: Ending) -> None:
            reasons.append(reason)
            process.kill()

        timer = loop.call_later(_START_S, kill, Ending.SANDBOX_ERROR)

        def begin() -> None:
            nonlocal started_s, timer
            timer.cancel()
            started_s = time.monotonic()
            timer = loop.call_later(limits.wall_s, kill, Ending.TIMEOUT)

        # One byte more than the limit: the first is the jail's own, and says that the candidate starts.
        stdout = Capture(limits.output_bytes + 1, lambda: kill(Ending.OUTPUT), begin)
        stderr = Capture(limits.output_bytes, lambda: kill(Ending.OUTPUT))
        process = self._start(program, number, stdout, stderr)
        watcher = loop.run_in_executor(None, process.wait)
        try:
            code = await asyncio.shield(watcher)
            seconds = time.monotonic() - started_s
        finally:
            timer.cancel()
            process.kill()
            await asyncio.shield(asyncio.wait_for(watcher, _DEATH_S))
            await asyncio.shield(self._maker.cleanup(number))
            # The command's end kills what it started, a moment later: the streams close when that is gone.
            with contextlib.suppress(TimeoutError):
                closed = asyncio.gather(stdout.wait_closed(), stderr.wait_closed())
                await asyncio.shield(asyncio.wait_for(closed, _DEATH_S))
            outputs = stdout.finish(), stderr.finish()
        if code > 128 and code - 128 in _FATAL:
            code = 128 - code
        facts = Facts(
            status=code << 8 if code >= 0 else -code,
            # No command reports CPU time. What kills unasked after a while is its limit, which counts the start too.
            cpu_s=limits.cpu_s if code == -signal.SIGKILL and seconds >= limits.cpu_s / 2 else 0.0,
            has_started=outputs[0][:1] == _STARTED,
            trouble=outputs[1].decode(errors="replace")[:500],
            our_reason=reasons[0] if reasons else None,
        )
        ending, ending_code, reason = ending_of(facts, limits)
        return Outcome(
            ending=ending,
            code=ending_code,
            stdout=outputs[0][1:],
            stderr=outputs[1],
            is_stdout_truncated=stdout.is_truncated,
            is_stderr_truncated=stderr.is_truncated,
            seconds=seconds,
            boundary=self.posture.boundary,
            jail=self.posture.jail,
            reason=reason,
        )

    def _start(self, program: Program, number: int, stdout: Capture, stderr: Capture) -> "subprocess.Popen[bytes]":
        stdin = sealed_file(start_of(program).encode(program.files) + program.stdin)
        filter_file = sealed_file(_FILTER)
        user = self._maker.user()
        try:
            return subprocess.Popen(
                self._maker.command(program, number, filter_file),
                pass_fds=(filter_file,),
                stdin=stdin,
                stdout=stdout.writer,
                stderr=stderr.writer,
                env={"PATH": "/usr/bin:/bin"},
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
        except OSError as error:
            stdout.finish()
            stderr.finish()
            raise WorkerLostError(f"the jail's command cannot be started: {error}") from None
        finally:
            os.close(stdin)
            os.close(filter_file)
            stdout.close_writer()
            stderr.close_writer()


_FATAL = frozenset({4, 6, 7, 8, 9, 11, 15, 24, 25, 31})  # what bubblewrap and runsc report as 128 + number
