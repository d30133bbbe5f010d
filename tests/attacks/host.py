"""The host that attacks are aimed at: things worth reaching, and a look at what an attack has left behind."""

import contextlib
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crescendo.reward_service.sandbox.warm import CANDIDATE_UID
from tests.attacks.suite import source_folder

SHARED_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
# Where other tests, and builds of images, mount things meanwhile.
OTHERS_MOUNTS = ("/pytest-of-", "/run/netns", "/crescendo-cluster/")


@dataclass
class Host:
    """Bait on this machine: a file, listeners, a secret in our environment and memory."""

    secret: str
    canary: Path
    tcp: socket.socket
    abstract: socket.socket
    at_path: socket.socket
    scratch: Path
    mounts: list[str] = field(default_factory=lambda: mounts())

    @property
    def values(self) -> dict[str, str]:
        """What the programs' placeholders stand for, apart from the sandbox's own."""
        return {
            "CANARY": str(self.canary),
            "SECRET": self.secret[:8] + "...",  # a program that held the secret itself would find it in itself
            "HALF": self.secret[:16],
            "OTHER": self.secret[16:],
            "PORT": str(self.tcp.getsockname()[1]),
            "UNIX_PATH": self.at_path.getsockname(),
            "ABSTRACT": self.abstract.getsockname()[1:].decode(),
            "SERVER_PID": str(os.getpid()),
            "SOURCE": source_folder(),
        }

    def traces(self, outcome_bytes: bytes) -> list[str]:
        """What an attack has reached or left, apart from processes."""
        found = []
        if self.secret.encode() in outcome_bytes:
            found.append("the secret is in the program's output")
        if self.canary.read_text() != self.secret or self.canary.stat().st_mode & 0o777 != 0o644:
            found.append("the canary file has changed")
        for name, listener in (("TCP", self.tcp), ("abstract", self.abstract), ("path", self.at_path)):
            with contextlib.suppress(BlockingIOError):
                (listener.accept() if name == "TCP" else listener.recv(1))
                found.append(f"the {name} listener was reached")
        if mounts() != self.mounts:
            found.append("the host's mounts have changed")
        if left := sorted(path.name for path in self.scratch.iterdir() if path.name.startswith("crescendo-run-")):
            found.append(f"run folders were left: {left}")
        for folder in SHARED_FOLDERS:
            for path in Path(folder).iterdir():
                with contextlib.suppress(OSError):
                    if path.lstat().st_uid == CANDIDATE_UID:
                        found.append(f"a candidate's file was left: {path}")
        for kind in ("shm", "sem", "msg"):
            listing = Path("/proc/sysvipc", kind)
            if listing.exists() and any(str(CANDIDATE_UID) in line.split() for line in _lines(listing)):
                found.append(f"System V {kind} was left")
        return found


@contextlib.contextmanager
def bait() -> Iterator[Host]:
    """Lays it out, and takes it away."""
    secret = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attacks-")))
        folder.chmod(0o755)
        canary = folder / "canary"
        canary.write_text(secret)
        canary.chmod(0o644)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        abstract.bind(f"\0attacks-{secrets.token_hex(8)}")
        at_path = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        at_path.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        for listener in (tcp, abstract, at_path):
            listener.setblocking(False)
        scratch = folder / "scratch"
        scratch.mkdir()
        scratch.chmod(0o755)
        former, tempfile.tempdir = tempfile.tempdir, str(scratch)
        os.environ["ATTACKS_SECRET"] = secret
        try:
            yield Host(secret, canary, tcp, abstract, at_path, scratch)
        finally:
            tempfile.tempdir = former
            del os.environ["ATTACKS_SECRET"]


def processes_below(pid: int = 0) -> set[int]:
    """Every process that this one started, zombies included."""
    found: set[int] = set()
    with contextlib.suppress(OSError):  # it has just ended
        for listing in Path("/proc", str(pid or os.getpid()), "task").glob("*/children"):
            for child in map(int, listing.read_text().split()):
                found |= {child} | processes_below(child)
    return found


def cgroup_members() -> list[str]:
    """Processes in cgroups of runs that this process made, as `folder: pids`."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        root = Path("/sys/fs/cgroup", controllers if controllers in ("memory", "pids") else "")
        for folder in (root / group.lstrip("/")).glob(f"crescendo-sandbox-{os.getpid()}-*/slot-*"):
            if pids := (folder / "cgroup.procs").read_text().split():
                found.append(f"{folder}: {pids}")
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:]


def mounts() -> list[str]:
    """The mounts that no other test has made; the fifth field is the mount point."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if not any(place in line.split()[4] for place in OTHERS_MOUNTS)]
