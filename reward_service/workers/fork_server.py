"""The pool's side of the zygote: starts it, asks it for workers, collects their exit statuses."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence

from crescendo.common.errors import WorkerLostError, WorkerStartError
from crescendo.reward_service.workers import confine
from crescendo.reward_service.workers.zygote import FORK, PACKET, READY, REAP

CALL_S = 10.0


class ForkServer:
    """One zygote process. `await ForkServer.start(...)`; `fork` and `reap` as needed; `await close()`.

    Calls raise WorkerLostError when the zygote has died or does not answer; it is then to be replaced.
    """

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket, has_network: bool) -> None:
        self._process = process
        self._control = control
        self._lock = asyncio.Lock()
        self.has_network = has_network

    @property
    def pid(self) -> int:
        """Process id of the zygote."""
        return self._process.pid

    @classmethod
    async def start(cls, modules: Sequence[str], memory_bytes: int, deadline_s: float) -> "ForkServer":
        """Starts a zygote that has imported `modules`; raises WorkerStartError when it is not ready in time."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                # Isolated: neither variables of Python nor the working folder choose what is imported.
                *("-I", "-W", "ignore", "-m", "crescendo.reward_service.workers.zygote"),
                *(str(theirs.fileno()), str(memory_bytes), ",".join(modules)),
                stdin=asyncio.subprocess.DEVNULL,
                env=confine.clean_environment(os.environ),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        server = cls(process, ours, has_network=True)
        try:
            kind, has_left = await server._receive(deadline_s)
        except WorkerLostError as error:
            await server.close()
            raise WorkerStartError(
                f"the zygote did not become ready within {deadline_s:g} s: {error.message}",
                fix="Read the executor's log for its output.",
            ) from None
        if kind != READY:
            await server.close()
            raise WorkerStartError(f"the zygote said {kind!r} instead of being ready.")
        server.has_network = not has_left
        return server

    async def fork(self) -> tuple[int, socket.socket]:
        """A new worker: its process id and our end of its socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        try:
            async with self._lock:
                self._send(PACKET.pack(FORK, 0), theirs)
                kind, pid = await self._receive(CALL_S)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        if kind != FORK:
            ours.close()
            raise WorkerLostError(f"the zygote answered {kind!r} to a fork.")
        return pid, ours

    async def reap(self, pid: int) -> int:
        """Wait status of a worker that ended or was killed; negative if it is not known."""
        async with self._lock:
            self._send(PACKET.pack(REAP, pid), None)
            _, status = await self._receive(CALL_S)
        return status

    async def close(self) -> None:
        """Kills the zygote, and with it every worker that is left."""
        self._control.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    def _send(self, packet: bytes, descriptor: socket.socket | None) -> None:
        try:
            if descriptor is None:
                self._control.send(packet)
            else:
                socket.send_fds(self._control, [packet], [descriptor.fileno()])
        except OSError as error:
            raise WorkerLostError(f"the zygote cannot be reached: {error}") from None

    async def _receive(self, timeout_s: float) -> tuple[bytes, int]:
        loop = asyncio.get_running_loop()
        try:
            data = await asyncio.wait_for(loop.sock_recv(self._control, PACKET.size), timeout_s)
        except TimeoutError:
            raise WorkerLostError(f"the zygote did not answer within {timeout_s:g} s.") from None
        except OSError as error:
            raise WorkerLostError(f"the zygote cannot be reached: {error}") from None
        if len(data) != PACKET.size:
            raise WorkerLostError("the zygote has ended.")
        kind, number = PACKET.unpack(data)
        return kind, number
