"""The executor's side of a zygote: starts it, asks it for children in fresh jails, learns how they ended."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import crescendo
from crescendo.common.errors import WorkerLostError, WorkerStartError
from crescendo.reward_service.sandbox.inside import packets

_START = (
    "import sys; sys.path.insert(0, {path!r}); "
    "from crescendo.reward_service.sandbox.inside.zygote import main; main(sys.argv[1:])"
)
_SOURCE_FOLDER = str(Path(crescendo.__file__).parent.parent)
_ENVIRONMENT = {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PATH": "/nonexistent"}
_MAX_DESCRIPTORS = 4
_DEATH_S = 10.0


@dataclass(frozen=True)
class Ended:
    """How a child ended. status: as waitpid gives it."""

    status: int
    cpu_s: float
    peak_bytes: int


class Child:
    """A process in its jail, waiting for a program on `control`."""

    def __init__(self, pidfd: int, control: socket.socket) -> None:
        self.pidfd = pidfd
        self.control = control
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int:
        """Process id as this process sees it; 0 when it has been reaped."""
        for line in Path(f"/proc/self/fdinfo/{self.pidfd}").read_text().splitlines():
            if line.startswith("Pid:"):
                return max(0, int(line.split()[1]))
        return 0

    def kill(self) -> None:
        """Ends the child and everything below it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    async def wait_gone(self) -> Ended:
        """Waits until nothing of the child is left; raises WorkerLostError if it does not end."""
        try:
            return await asyncio.wait_for(asyncio.shield(self.ended), _DEATH_S)
        except TimeoutError:
            raise WorkerLostError(f"a killed program has not ended within {_DEATH_S:g} s.") from None

    def close(self) -> None:
        """Lets go of its descriptors."""
        self.control.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class ZygoteProcess:
    """`await ZygoteProcess.start(...)`, `await fork(...)` as often as needed, `await close()`.

    When it dies, every call and every `Child.ended` raises WorkerLostError, and it is to be replaced.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", requests: socket.socket) -> None:
        self._process = process
        self._requests = requests
        self._forks: deque[tuple[asyncio.Future[Child], socket.socket]] = deque()
        self._children: dict[int, Child] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_lost = False
        asyncio.get_running_loop().add_reader(requests, self._receive)

    @property
    def pid(self) -> int:
        """Process id of what was started."""
        return self._process.pid

    @classmethod
    async def start(
        cls, jail: str, interpreter: str, uid: int, modules: Sequence[str], deadline_s: float
    ) -> "ZygoteProcess":
        """Starts a zygote; raises WorkerStartError with the reason if the jail cannot be made here."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - returns at once; its end is awaited in a thread
                [
                    *(interpreter, "-I", "-S", "-c", _START.format(path=_SOURCE_FOLDER)),
                    *(str(theirs.fileno()), jail, str(uid), ",".join(modules)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        zygote = cls(process, ours)
        try:
            await asyncio.wait_for(asyncio.shield(zygote._ready), deadline_s)
        except asyncio.CancelledError:
            await zygote.close()
            raise
        except (TimeoutError, WorkerLostError) as error:
            await zygote.close()
            reason = getattr(error, "message", f"not ready within {deadline_s:g} s")
            raise WorkerStartError(f"the {jail} jail cannot be made: {reason}") from None
        return zygote

    async def fork(self, shape: packets.ForkRequest, cgroup_descriptors: Sequence[int] = ()) -> Child:
        """A child in a fresh jail. cgroup_descriptors: open `cgroup.procs` files that it joins first."""
        if self.is_lost:
            raise WorkerLostError("the sandbox's zygote has ended.")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self._requests, [shape.encode()], [theirs.fileno(), *cgroup_descriptors])
        except OSError as error:
            ours.close()
            raise WorkerLostError(f"the sandbox's zygote cannot be reached: {error}") from None
        finally:
            theirs.close()
        self._forks.append((future, ours))
        return await future

    async def close(self) -> None:
        """Kills the zygote and, with it, every child."""
        self._lose("it was closed")
        if self._process.poll() is None:
            self._process.kill()
        await asyncio.get_running_loop().run_in_executor(None, self._process.wait)

    def _receive(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._requests, packets.MAX_PACKET, _MAX_DESCRIPTORS)
        except BlockingIOError:
            return None
        except OSError as error:
            return self._lose(str(error))
        if not data:
            return self._lose("it has ended; its log says why")
        message = json.loads(data)
        if "forked" in message:
            future, control = self._forks.popleft()
            child = Child(descriptors[0], control)
            self._children[message["forked"]] = child
            if future.cancelled():
                child.kill()
                child.close()
            else:
                future.set_result(child)
        elif "ended" in message:
            child = self._children.pop(message["ended"])
            child.ended.set_result(Ended(message["status"], message["cpu_s"], message["peak_bytes"]))
        elif "ready" in message:
            self._ready.set_result(None)
        elif self._ready.done():
            future, control = self._forks.popleft()
            control.close()
            if not future.cancelled():
                future.set_exception(WorkerLostError(f"the zygote could not fork: {message['failed']}"))
        else:
            self._lose(message["failed"])
        return None

    def _lose(self, reason: str) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        asyncio.get_running_loop().remove_reader(self._requests)
        self._requests.close()
        error = WorkerLostError(f"the sandbox's zygote is lost: {reason}")
        if not self._ready.done():
            self._ready.set_exception(error)
        for future, control in self._forks:
            control.close()
            if not future.done():
                future.set_exception(error)
        for child in self._children.values():
            child.ended.set_exception(error)
            child.ended.exception()  # a child nobody waits for is no news
        self._forks.clear()
        self._children.clear()


def own_interpreter() -> str:
    """The interpreter beneath this environment: a virtual environment's own would see installed packages."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
