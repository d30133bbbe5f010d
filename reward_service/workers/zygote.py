"""The zygote: a process that has imported the scorers' libraries and forks workers on request.

Started by workers/fork_server.py as `python -m crescendo.reward_service.workers.zygote SOCKET MEMORY MODULES`
with an allow-listed environment. Over a SEQPACKET socket it takes two requests, each one packet:

    fork (with one descriptor attached)  ->  process id
    reap <process id>                    ->  exit status as waitpid gives it

It never reads model text, and ends when its socket ends or its parent dies; its workers then end with it.
"""

import os
import signal
import socket
import struct
import sys
import time

from crescendo.reward_service.workers import confine
from crescendo.reward_service.workers.worker import exit_now, preload, run_worker

PACKET = struct.Struct("<cq")
READY, FORK, REAP, UNKNOWN = b"R", b"F", b"W", b"?"
MAX_REAP_S = 5.0
NOT_REAPED = -1


def main(arguments: list[str]) -> None:
    """Serves until the socket ends. arguments: descriptor, memory bytes a worker, modules joined by commas."""
    descriptor, memory_bytes, modules = int(arguments[0]), int(arguments[1]), arguments[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    has_left = confine.leave_network()
    confine.die_with_parent(signal.SIGKILL)  # after the change of credentials, which may clear it
    preload([name for name in modules.split(",") if name])
    control = socket.socket(fileno=descriptor)
    control.send(PACKET.pack(READY, int(has_left)))
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, PACKET.size, 1)
        if not data:
            return
        kind, number = PACKET.unpack(data)
        if kind == FORK and descriptors:
            control.send(PACKET.pack(FORK, _fork(descriptors[0], memory_bytes)))
            os.close(descriptors[0])
        elif kind == REAP:
            control.send(PACKET.pack(REAP, _reap(number)))
        else:
            control.send(PACKET.pack(UNKNOWN, 0))


def _fork(descriptor: int, memory_bytes: int) -> int:
    zygote = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()  # a session and process group of its own, which the pool kills as one
        run_worker(descriptor, memory_bytes, zygote)
        code = 0
    finally:
        exit_now(code)
    return 0


def _reap(pid: int) -> int:
    """Exit status of a worker that was killed or has ended; NOT_REAPED if it does not end."""
    deadline = time.monotonic() + MAX_REAP_S
    while time.monotonic() < deadline:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return NOT_REAPED
        if found:
            return status
        time.sleep(0.001)
    return NOT_REAPED


if __name__ == "__main__":
    main(sys.argv[1:])
