"""submit, get, logs, suspend, resume, promote, delete and render: RLJobs for people who don't speak kubectl."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from rich.console import Console
from rich.table import Table

from crescendo.cli.exits import Exit
from crescendo.common.config import read_mapping
from crescendo.common.errors import ConfigError, EnvironmentProblem
from crescendo.controller.operator.api import KubernetesApi
from crescendo.controller.operator.jobs import Jobs
from crescendo.controller.operator.render import to_rljob, to_run_file
from crescendo.controller.operator.resource import KIND, Job

T = TypeVar("T")
COLUMNS = ("PHASE", "STAGE", "ITER", "REWARD", "LENGTH", "GPUS", "READY", "RESTARTS", "REASON")


def submit(options: argparse.Namespace) -> int:
    """Creates an RLJob."""
    manifest = _manifest(options)
    job = _with_jobs(options, lambda jobs: jobs.submit(manifest))
    print(f"RLJob {job.namespace}/{job.name} is submitted. Look: crescendo get {job.name} -n {job.namespace}")
    return Exit.DONE


def get(options: argparse.Namespace) -> int:
    """Shows all jobs in a table, or one in full."""
    console = Console(highlight=False)
    if not options.job:
        namespace = "*" if options.all_namespaces else options.namespace
        found = _with_jobs(options, lambda jobs: jobs.list(), namespace=namespace)
        console.print(_table(found, all_namespaces=options.all_namespaces))
        return Exit.DONE
    job = _with_jobs(options, lambda jobs: jobs.get(options.job))
    console.print(_table([job], all_namespaces=False))
    for condition in job.status.get("conditions", ()):
        state = f"{condition['type']}={condition['status']}"
        console.print(f"  {state:22} {condition['reason']:24} {condition['message']}")
    return Exit.DONE


def logs(options: argparse.Namespace) -> int:
    """Prints the head's log."""

    async def stream(jobs: Jobs) -> None:
        async for line in jobs.logs(options.job, follow=options.follow, lines=options.lines):
            print(line.rstrip("\n"), flush=True)

    _with_jobs(options, stream)
    return Exit.DONE


def suspend(options: argparse.Namespace) -> int:
    """Asks for a commit and the devices back."""
    _with_jobs(options, lambda jobs: jobs.suspend(options.job, True))
    print(f"{options.job} commits, then its pods go. Go on with: crescendo resume {options.job} --cluster")
    return Exit.DONE


def resume(options: argparse.Namespace) -> int:
    """Ends a suspension."""
    _with_jobs(options, lambda jobs: jobs.suspend(options.run, False))
    print(f"{options.run} goes on from its last commit.")
    return Exit.DONE


def promote(options: argparse.Namespace) -> int:
    """Asks for the next stage, or a named later one."""
    stage = _with_jobs(options, lambda jobs: jobs.promote(options.run, options.stage))
    print(f"{options.run} enters stage {stage} after this iteration; status.promotedTo says when it is taken.")
    return Exit.DONE


def pause(options: argparse.Namespace) -> int:
    """Asks the run to park its responses and stand still, with its pods."""
    return _ask(options, "pause", "stands still at its next safe point, with its pods; go on with `crescendo unpause`")


def unpause(options: argparse.Namespace) -> int:
    """Lets a paused or drained run go on."""
    return _ask(options, "unpause", "goes on")


def drain(options: argparse.Namespace) -> int:
    """Asks for the end of the iteration, a commit, and a stand-still."""
    return _ask(options, "drain", "ends its iteration, commits, then stands still; go on with `crescendo unpause`")


def checkpoint(options: argparse.Namespace) -> int:
    """Asks for a commit after this iteration."""
    return _ask(options, "checkpoint", "commits after this iteration; status.checkpoint says when")


def quarantine(options: argparse.Namespace) -> int:
    """Asks for an engine to be taken out."""
    return _ask(options, "quarantine", f"takes {options.engine} out of service", options.engine)


def _ask(options: argparse.Namespace, verb: str, said: str, engine: str = "") -> int:
    _with_jobs(options, lambda jobs: jobs.ask(options.run, verb, engine))
    print(f"{options.run} {said}.")
    return Exit.DONE


def delete(options: argparse.Namespace) -> int:
    """Deletes a job, after asking."""
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError("delete asks before it acts, and nobody can answer.", field="--yes", fix="Give --yes.")
        if input(f"Delete RLJob {options.namespace}/{options.job} and its pods? [y/N] ").strip().lower() != "y":
            print("nothing was deleted")
            return Exit.DONE
    _with_jobs(options, lambda jobs: jobs.delete(options.job))
    print(f"{options.job} is deleted; retained volumes stay.")
    return Exit.DONE


def render(options: argparse.Namespace) -> int:
    """Prints the other form of a file."""
    raw = read_mapping(Path(options.file))
    shown = to_run_file(raw) if raw.get("kind") == KIND else to_rljob(raw, image=options.image, name=options.name)
    print(yaml.safe_dump(shown, sort_keys=False, width=110, allow_unicode=True), end="")
    return Exit.DONE


def _manifest(options: argparse.Namespace) -> dict[str, Any]:
    raw = read_mapping(Path(options.file))
    if raw.get("kind") == KIND:
        if options.name:
            raw["metadata"]["name"] = options.name
        return raw
    if not options.image:
        raise ConfigError(
            f"{options.file} is a run file; on a cluster it needs an image.", field="--image", fix="Give --image NAME."
        )
    return to_rljob(raw, image=options.image, name=options.name)


def _with_jobs(options: argparse.Namespace, act: Callable[[Jobs], Awaitable[T]], *, namespace: str | None = None) -> T:
    async def conversation() -> T:
        api = _connect(options.kubeconfig)
        try:
            return await act(Jobs(api, namespace or options.namespace))
        finally:
            await api.close()

    return asyncio.run(conversation())


def _connect(kubeconfig: str) -> KubernetesApi:
    path = Path(kubeconfig) if kubeconfig else None
    try:
        return KubernetesApi(path)
    except Exception as error:  # noqa: BLE001  lightkube raises several kinds; each means the same to a person
        raise EnvironmentProblem(
            f"no cluster to talk to: {error}", field="--kubeconfig", fix="Set KUBECONFIG, or give --kubeconfig FILE."
        ) from None


def _table(jobs: list[Job], *, all_namespaces: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (("NAMESPACE",) if all_namespaces else ()) + ("NAME", *COLUMNS):
        table.add_column(column, no_wrap=True)
    for job in jobs:
        status, progress = job.status, job.status.get("progress") or {}
        cells = [
            job.name, status.get("phase", ""), progress.get("stage", ""), progress.get("summary", ""),
            progress.get("reward", ""), progress.get("responseLength", ""), str(status.get("gpus", "")),
            status.get("readySummary", ""), str(status.get("restarts", "")), status.get("reason", ""),
        ]  # fmt: skip
        table.add_row(*([job.namespace] if all_namespaces else []), *cells)
    return table
