"""The zygote: a bare interpreter that has imported what candidates commonly use, and forks them into fresh jails.

Started by sandbox/zygote_process.py as `python -I -S -c ... DESCRIPTOR JAIL UID MODULES` with an allow-listed
environment. It reads requests from one SEQPACKET socket (packets.py), never runs or sees candidate code, holds no
secret and no earlier input, and ends when its socket ends or its parent dies; whatever it forked then ends with it.
What candidates inherit from it, and so share: the address layout, the hash seed, and these modules.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from typing import NoReturn

from crescendo.reward_service.sandbox.inside import candidate, packets, wire
from crescendo.reward_service.sandbox.inside.jails import JAILS, Jail

MAX_DESCRIPTORS_RECEIVED = 8
STANDARD_STREAMS = 3
MAX_DESCRIPTOR = 1 << 16


@dataclass
class Birth:
    """What a freshly forked child needs."""

    shape: packets.ForkRequest
    control: int
    cgroups: list[int]


class Zygote:
    """The request loop. `serve` returns in every child, with its Birth, and in the zygote, with None, at the end."""

    def __init__(self, requests: socket.socket, jail: Jail) -> None:
        self._requests = requests
        self._jail = jail
        self._children: dict[int, int] = {}  # pidfd to process id
        self._poll = select.poll()
        self._poll.register(requests, select.POLLIN)

    def serve(self) -> Birth | None:
        """See the class."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._reap(descriptor)
                    continue
                data, descriptors, _, _ = socket.recv_fds(self._requests, packets.MAX_PACKET, MAX_DESCRIPTORS_RECEIVED)
                if not data:
                    return None
                birth = Birth(packets.ForkRequest(**json.loads(data)), descriptors[0], descriptors[1:])
                if self._fork(birth):
                    return birth
                for received in descriptors:
                    os.close(received)

    def _fork(self, birth: Birth) -> bool:
        """Whether this is the child."""
        try:
            self._jail.before_fork()
            pid = os.fork()
        except OSError as error:
            self._say({"failed": str(error)})
            self._jail.after_fork()
            return False
        if pid == 0:
            return True
        self._jail.after_fork()
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        self._say({"forked": pid}, pidfd)
        return False

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        cpu_s = usage.ru_utime + usage.ru_stime
        self._say({"ended": pid, "status": status, "cpu_s": cpu_s, "peak_bytes": usage.ru_maxrss * 1024})

    def _say(self, message: dict[str, object], *descriptors: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # the executor has gone; the next read says so
            socket.send_fds(self._requests, [json.dumps(message).encode()], descriptors)


def main(arguments: list[str]) -> None:
    """Serves until the socket ends. arguments: descriptor, jail, user id for root to become, modules by commas."""
    requests = socket.socket(fileno=int(arguments[0]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in arguments[3].split(","):
        importlib.import_module(name)
    jail = JAILS[arguments[1]](int(arguments[2]))
    source_folder = sys.path.pop(0)
    mapped_bytes = address_space_bytes()
    try:
        jail.prepare()
    except OSError as error:
        requests.send(json.dumps({"failed": str(error)}).encode())
        return
    requests.send(json.dumps({"ready": source_folder}).encode())
    gc.collect()
    gc.disable()  # until the candidate starts, so that a child copies few pages
    gc.freeze()
    birth = Zygote(requests, jail).serve()
    if birth is not None:
        requests.detach()
        become_candidate(jail, birth, mapped_bytes)


def become_candidate(jail: Jail, birth: Birth, mapped_bytes: int) -> NoReturn:
    """The life of a child: into the jail, wait for the program, say that it starts, become it."""
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor in birth.cgroups:
            os.write(descriptor, b"0")
        jail.enter(birth.shape)
        control = socket.socket(fileno=birth.control)
        first, streams, _, _ = socket.recv_fds(control, 1, STANDARD_STREAMS)
        if not first:
            os._exit(0)  # the executor no longer needs this child
        start, contents = wire.read_start(control.fileno(), first)
        folder = jail.seal(start)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        if not start.folder:
            candidate.write_files(contents)
        candidate.apply_limits(start, mapped_bytes, counts_processes=jail.counts_processes)
        control.send(wire.STARTED)
        control.detach()
        os.closerange(STANDARD_STREAMS, MAX_DESCRIPTOR)
    except BaseException as error:  # noqa: BLE001 - told to the executor, whatever it is
        with contextlib.suppress(OSError):
            os.write(birth.control, f"{type(error).__name__}: {error}".encode()[: wire.MAX_TROUBLE_BYTES])
        os._exit(1)
    candidate.run(start, contents[start.entry], folder)


def address_space_bytes() -> int:
    """What this process has mapped."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
