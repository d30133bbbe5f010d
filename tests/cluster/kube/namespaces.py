"""Network, mount and process namespaces of a node: what is started in them dies with them, and so do its mounts.

A holder (`unshare`) keeps them; its first process reaps. Programs enter through `prefix`; the calling thread itself may
enter the network only, so that whatever it starts or connects to (kubectl, Helm, a browser) sees the cluster. Needs
root.
"""

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.cluster.kube.processes import die_with_parent

CLONE_NEWNET = 0x40000000
LIMIT_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


class Namespaces:
    """Made at once; `close` ends everything in them."""

    def __init__(self) -> None:
        self._outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "--",
             "bash", "-c", "sleep infinity; :"],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent, start_new_session=True,
        )  # fmt: skip
        self.first = self._first_process()
        self.prefix = ("nsenter", "--target", str(self.first), "--mount", "--net", "--pid", "--")

    def enter_network(self) -> None:
        """Moves this thread, and what it starts from now on, into the network of the node."""
        inside = os.open(f"/proc/{self.first}/ns/net", os.O_RDONLY)
        try:
            _set_namespace(inside)
        finally:
            os.close(inside)

    def close(self) -> None:
        """Moves this thread back out and ends every process inside; returns when they are gone."""
        _set_namespace(self._outside)
        os.close(self._outside)
        os.kill(self.first, signal.SIGKILL)  # the kernel ends the rest before this process counts as ended
        self._holder.wait(LIMIT_S)

    def _first_process(self) -> int:
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        deadline = time.monotonic() + LIMIT_S
        while self._holder.poll() is None and time.monotonic() < deadline:
            found = children.read_text().split()
            if found and Path(f"/proc/{found[0]}/comm").read_text().strip() == "bash":
                return int(found[0])
            time.sleep(0.02)
        raise RuntimeError("the namespaces could not be made (unshare failed)")


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns failed")
