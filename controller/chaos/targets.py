"""The processes of a run as an outsider finds them: by descent from who started it, and by the run's own registry.

Never by a name across the machine: only descendants of this process are looked at. Orphans count, because a
campaign adopts them (cli/processes.py). Ray's actors tell by their id in the controller's log who they are.
"""

import re
from dataclasses import dataclass

import psutil

from crescendo.common.runfolder import RunFolder
from crescendo.common.telemetry import read_jsonl
from crescendo.common.weights import stale_shm_files

_READY = re.compile(r"(?P<worker>[a-z]+-\d+) is ready at (?P<address>\S*) \(pid (?P<pid>\d+)\)")
_ROLES = {"rollout": "engine"}

# Words of a command line that tell what a process is, the first that fits.
_COMMANDS = (
    ("crescendo.controller", "controller"),
    ("crescendo.reward_service executor", "executor"),
    ("crescendo.reward_service reward", "reward"),
    ("crescendo.console", "console"),
    ("crescendo.buffer.archive", "archiver"),
    ("valkey-server", "valkey"),
    ("raylet/raylet", "raylet"),
    ("gcs_server", "gcs"),
    ("crescendo.cli.main run", "command"),
    ("crescendo.cli.main resume", "command"),
)


@dataclass(frozen=True)
class Target:
    """A process that a fault may hit. created: tells it from a later one with the same id."""

    kind: str
    pid: int
    created: float
    address: str = ""

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            return bool(process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def find_targets(folder: RunFolder) -> list[Target]:
    """The living processes of the run that this process (or a child) started, those that are told apart."""
    workers = _registered(folder)
    found: list[Target] = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            kind, address = _kind(process, workers, {one.pid for one in found if one.kind == "executor"})
            if kind:
                found.append(Target(kind, process.pid, process.create_time(), address))
        except psutil.NoSuchProcess:
            continue
    return found


def descendants() -> dict[int, float]:
    """Process ids below this one, zombies left out, with their times of birth."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process.create_time()
        except psutil.NoSuchProcess:
            continue
    return found


def left_behind(seen: dict[int, float], run_id: str) -> list[str]:
    """Of processes once seen, those still alive; and the run's shared-memory files."""
    left = [f"shared memory {path.name}" for path in stale_shm_files(run_id)]
    for pid, created in seen.items():
        try:
            process = psutil.Process(pid)
            if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"process {pid}: {' '.join(process.cmdline())[:100]}")
        except psutil.NoSuchProcess:
            continue
    return left


def _registered(folder: RunFolder) -> dict[int, tuple[str, str]]:
    """Process id to (worker id, address), as the controller logged each start."""
    found = {}
    for row in read_jsonl(folder.logs / "controller.log"):
        match = _READY.match(str(row.get("message", "")))
        if match:
            found[int(match["pid"])] = (match["worker"], match["address"])
    return found


def _kind(process: psutil.Process, workers: dict[int, tuple[str, str]], executors: set[int]) -> tuple[str, str]:
    worker, address = workers.get(process.pid, ("", ""))
    command = " ".join(process.cmdline())
    for words, kind in _COMMANDS:
        if words in command:
            return kind, address
    if worker and command.startswith("ray::"):
        role = worker.partition("-")[0]
        return _ROLES.get(role, role), address
    if executors & {parent.pid for parent in process.parents()}:
        return "scorer", ""
    return "", ""
