"""One run: a program goes into a child that waits in its jail, and an Outcome comes out."""

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path

import psutil

from crescendo.reward_service.sandbox.capture import Capture, sealed_file
from crescendo.reward_service.sandbox.cgroups import Slot
from crescendo.reward_service.sandbox.ending import Facts, ending_of
from crescendo.reward_service.sandbox.inside import wire
from crescendo.reward_service.sandbox.profiles import PROFILES
from crescendo.reward_service.sandbox.protocol import MIB, Ending, Outcome, Posture, Program
from crescendo.reward_service.sandbox.zygote_process import Child, Ended

POLL_S = 0.05
# What the interpreter itself takes of a cgroup's memory: copied pages, page tables, kernel memory.
INTERPRETER_BYTES = 32 * MIB


def start_of(program: Program, folder: str = "") -> wire.Start:
    """What a jail needs to know of a program."""
    limits = program.limits
    return wire.Start(
        entry=PROFILES[program.profile].entry,
        folder=folder,
        limits=(limits.memory_bytes, ceil(limits.cpu_s), limits.file_bytes, limits.num_processes),
        arguments=program.arguments,
        environment=program.environment,
    )


class Run:
    """`await Run(...).outcome(folder)`, once. Kills the child at a limit; the caller buries it in any case."""

    def __init__(self, child: Child, slot: Slot | None, program: Program, posture: Posture) -> None:
        self._child = child
        self._slot = slot
        self._program = program
        self._posture = posture
        self._our_reason: Ending | None = None

    async def outcome(self, folder: str) -> Outcome:
        """folder: where the files lie already (landlock); empty if the jail writes them itself."""
        limits = self._program.limits
        if self._slot:
            self._slot.limit(limits.memory_bytes + limits.files_bytes + INTERPRETER_BYTES, limits.num_processes)
        stdout = Capture(limits.output_bytes, lambda: self._kill(Ending.OUTPUT))
        stderr = Capture(limits.output_bytes, lambda: self._kill(Ending.OUTPUT))
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(limits.wall_s, self._kill, Ending.TIMEOUT)]
        watch = None
        if self._slot is None and limits.num_processes > 1 and not folder:
            watch = loop.create_task(self._watch_memory())
        started_s = time.monotonic()
        try:
            await self._send(folder, stdout, stderr)
            ended = await asyncio.shield(self._child.ended)
            seconds = time.monotonic() - started_s
        finally:
            for timer in timers:
                timer.cancel()
            if watch:
                watch.cancel()
            outputs = stdout.finish(), stderr.finish()
        ending, code, reason = ending_of(self._facts(ended), limits)
        return Outcome(
            ending=ending,
            code=code,
            stdout=outputs[0],
            stderr=outputs[1],
            is_stdout_truncated=stdout.is_truncated,
            is_stderr_truncated=stderr.is_truncated,
            seconds=seconds,
            cpu_seconds=ended.cpu_s,
            peak_bytes=(self._slot.peak_bytes() if self._slot else 0) or ended.peak_bytes,
            boundary=self._posture.boundary,
            jail=self._posture.jail,
            reason=reason,
        )

    async def _send(self, folder: str, stdout: Capture, stderr: Capture) -> None:
        program = self._program
        start = start_of(program, folder)
        message = start.encode(program.files)
        stdin = sealed_file(program.stdin)
        control = self._child.control
        try:
            sent = socket.send_fds(control, [message], [stdin, stdout.writer, stderr.writer])
            stdout.close_writer()
            stderr.close_writer()
            if sent < len(message):
                await asyncio.get_running_loop().sock_sendall(control, memoryview(message)[sent:])
        except OSError:
            pass  # the child has died; its status and what it said tell why
        finally:
            os.close(stdin)

    def _facts(self, ended: Ended) -> Facts:
        try:
            said = self._child.control.recv(wire.MAX_TROUBLE_BYTES)
        except OSError:
            said = b""
        return Facts(
            status=ended.status,
            cpu_s=ended.cpu_s,
            has_started=said == wire.STARTED,
            trouble=said.decode(errors="replace"),
            our_reason=self._our_reason,
            is_out_of_memory=self._slot is not None and self._slot.was_out_of_memory(),
        )

    def _kill(self, reason: Ending) -> None:
        if self._our_reason is None:
            self._our_reason = reason
            self._child.kill()

    async def _watch_memory(self) -> None:
        """Without a cgroup, memory of several processes is only seen by looking. Shared pages count for each."""
        root = psutil.Process(self._child.pid)
        base_bytes = root.memory_info().rss
        with contextlib.suppress(psutil.NoSuchProcess):
            while True:
                await asyncio.sleep(POLL_S)
                total = 0
                for process in (root, *root.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        total += max(0, process.memory_info().rss - base_bytes)
                if total > self._program.limits.memory_bytes:
                    return self._kill(Ending.MEMORY)


@contextlib.contextmanager
def read_only_folder(files: Mapping[str, bytes]) -> Iterator[str]:
    """A folder with a program's files, which others may read; it is removed at the end."""
    folder = tempfile.mkdtemp(prefix="crescendo-run-")
    try:
        for name, data in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
