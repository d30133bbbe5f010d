"""A control group of a node's own, in every hierarchy that this machine has (v1 or v2), removed at the end."""

import contextlib
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
# Ten times a process: a group counts as one, and a whole node lives in this.
SHARES = {"cpu.shares": "10240", "cpu.weight": "1000"}
INHERITED = ("cpuset.cpus", "cpuset.mems")
LIMIT_S = 20.0


def make(name: str) -> None:
    """Makes /<name>; a v1 cpuset takes over what its parent has."""
    for hierarchy in _hierarchies():
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        for setting in INHERITED:
            if hierarchy != ROOT and (folder / setting).exists():
                (folder / setting).write_text((hierarchy / setting).read_text())
        for setting, value in SHARES.items():
            if (folder / setting).exists():
                (folder / setting).write_text(value)


def remove(name: str) -> None:
    """Removes it with all below, once its processes are gone; raises TimeoutError when they do not go."""
    deadline = time.monotonic() + LIMIT_S
    while left := [folder for hierarchy in _hierarchies() for folder in _deepest_first(hierarchy / name)]:
        for folder in left:
            with contextlib.suppress(OSError):  # busy for a moment after its last process
                folder.rmdir()
        if time.monotonic() > deadline:
            raise TimeoutError(f"control groups that stay: {left}")
        time.sleep(0.05)


def _hierarchies() -> list[Path]:
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink()]


def _deepest_first(folder: Path) -> list[Path]:
    if not folder.exists():
        return []
    found = [path for path in folder.rglob("*") if path.is_dir()]
    return [*sorted(found, key=lambda path: -len(path.parts)), folder]
