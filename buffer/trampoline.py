"""Becomes the embedded server: run as a script by embedded.py, replaced by valkey-server within milliseconds.

Arguments: parent's process id, lock file, seconds to wait for the lock, then the command. Between fork and exec
nothing can run safely in a process with threads, so what must be done there is done here:
- the kernel is asked to send SIGTERM when the parent ends, which makes the server flush its file and end;
- the lock is taken and stays with the process across exec, so that two servers never write one folder, even
  when a new controller starts while the old one's server is still ending.
Exit status 75: the lock is held by another server.
"""

import ctypes
import fcntl
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOCKED = 75


def main(arguments: list[str]) -> int:
    """Sets the process up and becomes the command; returns an exit status only when it can't."""
    parent, lock, patience_s, command = int(arguments[0]), arguments[1], float(arguments[2]), arguments[3:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the request above
        return 0
    held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(held, True)
    give_up = time.monotonic() + patience_s
    while not _lock(held):
        if time.monotonic() > give_up:
            return LOCKED
        time.sleep(0.02)
    return os.execv(command[0], command)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
