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
from rich.text import Text

from crescendo.cli.exits import Exit
from crescendo.common.config import read_mapping
from crescendo.common.errors import ConfigError, CrescendoError, EnvironmentProblem
from crescendo.controller.operator.api import ApiFailure, KubernetesApi
from crescendo.controller.operator.jobs import Jobs
from crescendo.controller.operator.render import is_rljob, to_rljob, to_run_file
from crescendo.controller.operator.resource import Job, printable

T = TypeVar("T")
COLUMNS = ("PHASE", "STAGE", "ITER", "REWARD", "LENGTH", "GPUS", "READY", "RESTARTS", "REASON")


def submit(options: argparse.Namespace) -> int:
    """Creates an RLJob."""
    manifest = _manifest(options)
    own = str(manifest["metadata"].get("namespace", ""))
    if options.namespace and own not in ("", options.namespace):
        raise ConfigError(
            f"{options.file} is for namespace {own}, --namespace says {options.namespace}.",
            field="--namespace",
            fix="Take one of them away.",
        )
    job = _with_jobs(options, lambda jobs: jobs.submit(manifest), namespace=own)
    print(f"RLJob {job.namespace}/{job.name} is submitted. Look: crescendo get {job.name} -n {job.namespace}")
    return Exit.DONE


def get(options: argparse.Namespace) -> int:
    """Shows all jobs in a table, or one in full."""
    # Whole lines for a pipe; on a terminal what fits.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
    if not options.job:
        namespace = "*" if options.all_namespaces else ""
        found = _with_jobs(options, lambda jobs: jobs.list(), namespace=namespace)
        console.print(_table(found, all_namespaces=options.all_namespaces))
        return Exit.DONE

    async def look(jobs: Jobs) -> tuple[Job, tuple[str, ...]]:
        job = await jobs.get(options.job)
        return job, await jobs.obstacles(job)

    job, obstacles = _with_jobs(options, look)
    console.print(_table([job], all_namespaces=False))
    if message := job.status.get("message") or ("" if job.status else "no status yet: does the operator run?"):
        console.print(f"  {message}", markup=False)
    for condition in job.status.get("conditions", ()):
        state = f"{condition['type']}={condition['status']}"
        console.print(f"  {state:22} {condition['reason']:24} {condition['message']}", markup=False)
    for line in obstacles:
        console.print(f"  pod {line}", markup=False)
    return Exit.DONE


def logs(options: argparse.Namespace) -> int:
    """Prints what the run says, or its head."""

    async def stream(jobs: Jobs) -> None:
        async for line in jobs.logs(options.job, head=options.head, follow=options.follow, lines=options.lines):
            print(printable(Text.from_ansi(line.rstrip("\n")).plain), flush=True)

    _with_jobs(options, stream)
    return Exit.DONE


def suspend(options: argparse.Namespace) -> int:
    """Asks for a commit and the devices back."""
    _with_jobs(options, lambda jobs: jobs.suspend(options.job, True))
    print(f"{options.job} commits, then its pods go. Go on with: crescendo resume {options.job} --cluster")
    return Exit.DONE


def resume(options: argparse.Namespace) -> int:
    """Ends a suspension."""
    name = _named(options)
    _with_jobs(options, lambda jobs: jobs.suspend(name, False))
    print(f"{name} goes on from its last commit.")
    return Exit.DONE


def promote(options: argparse.Namespace) -> int:
    """Asks for the next stage, or a named later one."""
    name = _named(options)
    stage = _with_jobs(options, lambda jobs: jobs.promote(name, options.stage))
    print(f"{name} enters stage {stage} after this iteration; status.promotedTo says when it is taken.")
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
    name = _named(options)
    _with_jobs(options, lambda jobs: jobs.ask(name, verb, engine))
    print(f"{name} {said}.")
    return Exit.DONE


def _named(options: argparse.Namespace) -> str:
    """The job of a command that has the newest run of this machine as its default."""
    if not options.run:
        raise ConfigError("--cluster needs the job's name.", field="RUN", fix="Give it; see `crescendo get`.")
    return str(options.run)


def delete(options: argparse.Namespace) -> int:
    """Deletes a job, after asking."""
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError("delete asks before it acts, and nobody can answer.", field="--yes", fix="Give --yes.")
        where = f" in namespace {options.namespace}" if options.namespace else ""
        if input(f"Delete RLJob {options.job}{where} and its pods? [y/N] ").strip().lower() != "y":
            print("nothing was deleted")
            return Exit.DONE
    _with_jobs(options, lambda jobs: jobs.delete(options.job))
    print(f"{options.job} is deleted; retained volumes stay.")
    return Exit.DONE


def render(options: argparse.Namespace) -> int:
    """Prints the other form of a file."""
    raw = read_mapping(Path(options.file))
    if is_rljob(raw):
        shown = to_run_file(_with_name(raw, options))
    else:
        shown = to_rljob(raw, image=options.image, name=options.name)
    print(yaml.safe_dump(shown, sort_keys=False, width=110, allow_unicode=True), end="")
    return Exit.DONE


def _manifest(options: argparse.Namespace) -> dict[str, Any]:
    raw = read_mapping(Path(options.file))
    if is_rljob(raw):
        job = _with_name(raw, options)
        if options.image:
            job["spec"]["image"] = options.image
        return job
    if not options.image:
        raise ConfigError(
            f"{options.file} is a run file; on a cluster it needs an image.", field="--image", fix="Give --image NAME."
        )
    return to_rljob(raw, image=options.image, name=options.name)


def _with_name(raw: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """An RLJob with a name and a spec; raises ConfigError."""
    metadata, spec = raw.get("metadata") or {}, raw.get("spec")
    if options.name and isinstance(metadata, dict):
        metadata["name"] = options.name
    named = isinstance(metadata, dict) and isinstance(metadata.get("name"), str)
    if not isinstance(spec, dict) or not named:
        raise ConfigError(
            f"{options.file} has no spec or no metadata.name.",
            field="metadata.name",
            fix="Give it --name NAME.",
        )
    return {**raw, "metadata": metadata}


def _with_jobs(options: argparse.Namespace, act: Callable[[Jobs], Awaitable[T]], *, namespace: str = "") -> T:
    async def conversation() -> T:
        api = _connect(options.kubeconfig)
        try:
            return await act(Jobs(api, namespace or options.namespace or api.namespace))
        except ApiFailure as failure:
            raise _explained(failure, api.server) from None
        finally:
            await api.close()

    return asyncio.run(conversation())


def _explained(failure: ApiFailure, server: str) -> CrescendoError:
    """What a person can do about an answer of the API server. server: its address."""
    if failure.code == 403:
        fix = "Ask the cluster's administrator: the roles view, edit and admin hold the rights on rljobs."
        return ConfigError(failure.message, fix=fix)
    if failure.code == 404 and 'namespaces "' in failure.message:
        return ConfigError(failure.message, field="--namespace", fix="Name one that there is.")
    if failure.code == 404:
        return EnvironmentProblem(
            "the cluster serves no RLJobs.", fix="Ask its administrator to install Crescendo's chart."
        )
    if failure.code in (0, 401):
        fix = f"Check the cluster's address ({server}) and your login in the kubeconfig: kubectl auth whoami"
        return EnvironmentProblem(failure.message, field="--kubeconfig", fix=fix)
    return failure


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
