"""Control groups for runs: made ahead, joined by a fresh child, and used again after a reset that is verified.

Making and removing a cgroup costs milliseconds, so k1.5's sandbox made them ahead (Kimi k1.5, section 2.6.4); so does
this. A slot that does not come back empty (a process in it, memory still charged) is set aside and replaced, never
used again. Version 1 (a folder in each controller's hierarchy) and version 2 (one folder) are supported, where this
process may write them; `CgroupPool.open` says why not otherwise.
"""

import contextlib
import errno
import itertools
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

_PREFIX = "crescendo-sandbox-"
# What stays charged to an empty group: kernel objects that are freed late.
MAX_LEFT_BYTES = 4 << 20
_EMPTY_S = 0.2
_POOLS = itertools.count(1)  # a process may have several
_ROOM_BYTES = 64 << 20  # until a program's own limit is set


@dataclass(frozen=True)
class _Names:
    """File names of one cgroup version."""

    memory: str
    current: str
    peak: str
    events: str
    reclaim: str


_V1 = _Names(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.oom_control",
    "memory.force_empty",
)
_V2 = _Names("memory.max", "memory.current", "memory.peak", "memory.events", "memory.reclaim")


@dataclass
class Slot:
    """One cgroup: `descriptors` are its open `cgroup.procs`, for a child to join by writing 0."""

    memory: Path
    pids: Path
    names: _Names
    descriptors: list[int] = field(default_factory=list)
    _kills_before: int = 0

    @property
    def folders(self) -> set[Path]:
        """One folder (version 2) or two."""
        return {self.memory, self.pids}

    def limit(self, memory_bytes: int, num_processes: int) -> None:
        """Sets the limits of the coming run."""
        (self.memory / self.names.memory).write_text(str(memory_bytes))
        (self.pids / "pids.max").write_text(str(num_processes))

    def was_out_of_memory(self) -> bool:
        """Whether the kernel killed something here since the slot was taken."""
        return self._kills() > self._kills_before

    def peak_bytes(self) -> int:
        """Most memory that was charged; 0 if the kernel does not say."""
        try:
            return int((self.memory / self.names.peak).read_text())
        except (OSError, ValueError):
            return 0

    def processes(self) -> list[int]:
        """Process ids inside."""
        return [int(line) for folder in self.folders for line in (folder / "cgroup.procs").read_text().split()]

    def reset(self) -> bool:
        """Makes the slot as good as new; False if it is not."""
        deadline = time.monotonic() + _EMPTY_S
        while self.processes() or self._left_bytes() > MAX_LEFT_BYTES:
            if time.monotonic() > deadline:
                return False
            with contextlib.suppress(OSError):  # what cannot be reclaimed yet shows in the next look
                (self.memory / self.names.reclaim).write_text(str(1 << 30) if self.names is _V2 else "0")
        with contextlib.suppress(OSError):  # version 2 before Linux 6.12 has no reset: the peak is then of all runs
            (self.memory / self.names.peak).write_text("0")
        self.limit(_ROOM_BYTES, 1)
        self._kills_before = self._kills()
        return True

    def _left_bytes(self) -> int:
        return int((self.memory / self.names.current).read_text())

    def _kills(self) -> int:
        for line in (self.memory / self.names.events).read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0


class CgroupPool:
    """Slots for runs. `take` one before a fork, `give_back` when its process is gone, `close` at the end."""

    def __init__(self, memory_root: Path, pids_root: Path, names: _Names, num_ahead: int) -> None:
        self.version = "cgroup-v2" if names is _V2 else "cgroup-v1"
        self.num_quarantined = 0
        self._roots = (memory_root, pids_root)
        self._names = names
        self._name = f"{_PREFIX}{os.getpid()}-{next(_POOLS)}"
        self._number = 0
        self._is_closed = False
        self._free: deque[Slot] = deque()
        self._taken: list[Slot] = []
        self._aside: list[Slot] = []
        for root in set(self._roots):
            _remove_orphans(root)
            (root / self._name).mkdir()
        if names is _V2:
            (memory_root / self._name / "cgroup.subtree_control").write_text("+memory +pids")
        for _ in range(num_ahead):
            self._free.append(self._make())

    @classmethod
    def open(cls, num_ahead: int, mounts: str = "/proc/self/mountinfo", own: str = "/proc/self/cgroup") -> "CgroupPool":
        """A pool beneath this process's own cgroup; raises OSError with the reason if it may not write there."""
        groups = dict(line.split(":", 2)[1:] for line in Path(own).read_text().splitlines())
        points = _mount_points(Path(mounts).read_text())
        if "memory" in points and "pids" in points:
            roots = [_below(points[name], groups.get(name, "/")) for name in ("memory", "pids")]
            return cls(roots[0], roots[1], _V1, num_ahead)
        if "" not in points:
            raise OSError(errno.ENOENT, "no cgroup file system is mounted")
        root = _below(points[""], groups.get("", "/"))
        controllers = (root / "cgroup.controllers").read_text().split()
        if not {"memory", "pids"} <= set(controllers):
            raise OSError(errno.ENOTSUP, f"{root} has the controllers {controllers}; memory and pids are needed")
        enabled = (root / "cgroup.subtree_control").read_text().split()
        if not {"memory", "pids"} <= set(enabled):
            (root / "cgroup.subtree_control").write_text("+memory +pids")
        return cls(root, root, _V2, num_ahead)

    def take(self) -> Slot:
        """A slot with nothing in it."""
        slot = self._free.popleft() if self._free else self._make()
        self._taken.append(slot)
        return slot

    def give_back(self, slot: Slot) -> None:
        """The run is over: the slot is used again if it is verifiably empty."""
        if self._is_closed:
            return
        self._taken.remove(slot)
        if slot.reset():
            self._free.append(slot)
        else:
            self.num_quarantined += 1
            self._aside.append(slot)

    def close(self) -> None:
        """Removes every group."""
        self._is_closed = True
        for slot in (*self._free, *self._taken, *self._aside):
            for descriptor in slot.descriptors:
                os.close(descriptor)
            for folder in slot.folders:
                _remove(folder)
        for root in set(self._roots):
            _remove(root / self._name)

    def _make(self) -> Slot:
        self._number += 1
        memory, pids = (root / self._name / f"slot-{self._number}" for root in self._roots)
        slot = Slot(memory, pids, self._names)
        for folder in slot.folders:
            folder.mkdir()
            slot.descriptors.append(os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        if self._names is _V2:
            with contextlib.suppress(OSError):  # no swap controller
                (memory / "memory.swap.max").write_text("0")
        slot.reset()
        return slot


def _mount_points(mountinfo: str) -> dict[str, str]:
    """Controller to mount point; "" is version 2."""
    points: dict[str, str] = {}
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        if kind == "cgroup2":
            points[""] = head.split()[4]
        elif kind == "cgroup":
            points |= {name: head.split()[4] for name in options.split(",") if name in ("memory", "pids")}
    return points


def _below(point: str, group: str) -> Path:
    """The folder of a group; in a cgroup namespace or container the mount point itself may be it."""
    folder = Path(point, group.lstrip("/"))
    return folder if folder.is_dir() else Path(point)


def _remove_orphans(root: Path) -> None:
    """Removes what a killed service has left."""
    for folder in root.glob(f"{_PREFIX}*"):
        if not Path("/proc", folder.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            for slot in folder.glob("slot-*"):
                _remove(slot)
            _remove(folder)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a process is still in it, or somebody was faster: the next service tries again
        folder.rmdir()
