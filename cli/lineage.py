"""`crescendo lineage`: where a run's weights come from: versions, branches, rollbacks, commits, stages.

Read from the buffer while the run lives, from its archive afterwards; commits, stages and rollbacks from the run
folder, which is all there is for a run that kept no archive.
"""

import argparse
import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from crescendo.buffer import EmbeddedServer, connect
from crescendo.buffer.archive import archive_url
from crescendo.buffer.archive.lineage import Lineage, LineageBook, Version
from crescendo.buffer.archive.store import ArchiveStore
from crescendo.cli.exits import Exit
from crescendo.cli.folders import find_run
from crescendo.common.config import Config, load_resolved
from crescendo.common.control import read_controller
from crescendo.common.errors import CheckpointError, CrescendoError
from crescendo.common.runfolder import RunFolder
from crescendo.common.telemetry import read_jsonl

PATIENCE_S = 2.0
_TOLD = ("stage.", "branch.", "run.restored")


@dataclass(frozen=True)
class Commit:
    """A checkpoint that is still there. file: its manifest."""

    sequence: int
    branch: int
    iteration: int
    weight_version: int
    file: str


@dataclass(frozen=True)
class Told:
    """An event that changed the line of weights."""

    kind: str
    message: str
    branch: int
    iteration: int


@dataclass
class View:
    """Everything about a run's lineage. source: buffer | archive | run folder."""

    run_id: str
    source: str
    lineage: Lineage
    commits: list[Commit] = field(default_factory=list)
    events: list[Told] = field(default_factory=list)

    @property
    def ancestors(self) -> set[int]:
        """Versions that the newest commit's weights come from, itself included; all when it isn't known."""
        parents = {one.version: one.parent for one in self.lineage.versions}
        version = self.commits[-1].weight_version if self.commits else max(parents, default=0)
        found: set[int] = set()
        while version in parents and version not in found:
            found.add(version)
            version = parents[version]
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        line, ancestors = self.lineage.line(), self.ancestors
        origins = {0: (None, None), **self.lineage.branches}
        return {
            "run_id": self.run_id,
            "source": self.source,
            "commit": list(self.lineage.commit) if self.lineage.commit else None,
            "branches": [
                {"branch": branch, "parent": parent, "from_iteration": start, "survives": branch in line,
                 "survives_until": line.get(branch)}
                for branch, (parent, start) in sorted(origins.items())
            ],
            "versions": [{**asdict(one), "ancestor": one.version in ancestors} for one in self.lineage.versions],
            "commits": [asdict(commit) for commit in self.commits],
            "events": [asdict(event) for event in self.events],
        }  # fmt: skip


def lineage(options: argparse.Namespace) -> int:
    """Prints the tree, or JSON; returns the exit code."""
    folder = find_run(options.run)
    view = collect(folder)
    if options.json:
        print(json.dumps(view.to_dict()))
    else:
        Console(highlight=False, soft_wrap=True).print(tree(view))
    return Exit.DONE


def collect(folder: RunFolder) -> View:
    """What can be known of a run now; raises CheckpointError for a damaged manifest."""
    config = load_resolved(folder.config)
    known, source = _from_buffer(folder, config), "buffer"
    if known is None:
        known, source = _from_archive(folder, config), "archive"
    commits = _commits(folder)
    if known is None:
        source = "run folder"
        versions = sorted({(one.weight_version, one.branch, one.iteration) for one in commits})
        known = Lineage([Version(version, 0, branch, iteration, True) for version, branch, iteration in versions])
    if commits:
        known.commit = max(known.commit or (0, 0), (commits[-1].branch, commits[-1].iteration))
    return View(folder.run_id(), source, known, commits, list(_events(folder)))


def _from_buffer(folder: RunFolder, config: Config) -> Lineage | None:
    if read_controller(folder) is None:
        return None
    url = config.buffer.url
    if config.buffer.name == "embedded":
        url = EmbeddedServer.from_config(folder.buffer, config.buffer).url

    async def read() -> Lineage:
        buffer = await connect(url, folder.run_id(), patience_s=PATIENCE_S)
        try:
            book = LineageBook()
            commit = await buffer.committed()
            await book.update(buffer, commit[:2] if commit else None)
            return book.lineage
        finally:
            await buffer.close()

    try:
        return asyncio.run(read())
    except CrescendoError as error:
        if not error.retryable:
            raise
        return None


def _from_archive(folder: RunFolder, config: Config) -> Lineage | None:
    stored = ArchiveStore(archive_url(config, folder)).lineage()
    return None if stored is None else Lineage.from_dict(stored)


def _commits(folder: RunFolder) -> list[Commit]:
    found = []
    for path in sorted(folder.checkpoints.glob("commit-*.json")):
        try:
            stored = json.loads(path.read_text())
            numbers = {name: int(stored[name]) for name in ("sequence", "branch", "iteration", "weight_version")}
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged: {error!r}.", fix="Restore it from a copy, or move it away."
            ) from error
        found.append(Commit(**numbers, file=path.name))
    return sorted(found, key=lambda commit: commit.sequence)


def _events(folder: RunFolder) -> Iterator[Told]:
    """Events by branch and iteration: both are those of the last metrics row written before."""
    rows = sorted(read_jsonl(folder.metrics), key=lambda row: float(row.get("unix_seconds", 0.0)))
    for event in read_jsonl(folder.events):
        if not str(event.get("kind", "")).startswith(_TOLD):
            continue
        at = float(event.get("unix_seconds", 0.0))
        before = [row for row in rows if float(row.get("unix_seconds", 0.0)) <= at]
        branch = int(before[-1].get("branch", 0)) if before else 0
        iteration = int(before[-1].get("iteration", 0)) if before else 0
        yield Told(str(event["kind"]), str(event.get("message", "")), branch, iteration)


# For people ---------------------------------------------------------------------------------------------


def tree(view: View) -> Tree:
    """The run's branches as a tree; versions of a row are one line."""
    commit = view.lineage.commit
    stands = f"; committed: branch {commit[0]}, iteration {commit[1]}" if commit else "; nothing is committed"
    root = Tree(f"[bold]{view.run_id}[/bold] (from the {view.source}){stands}")
    _grow(root, view, 0, None)
    return root


def _grow(node: Tree, view: View, branch: int, start: int | None) -> None:
    """Adds a branch with everything on it, oldest first; branches that leave it grow where they leave."""
    line = view.lineage.line()
    fate = "" if branch in line else " [dim](abandoned)[/dim]"
    where = "" if start is None else f", from iteration {start}"
    grown = node.add(f"[bold]branch {branch}[/bold]{where}{fate}")
    for _, item in sorted(_items(view, branch), key=lambda pair: pair[0]):
        if isinstance(item, int):
            _grow(grown, view, item, view.lineage.branches[item][1])
        else:
            grown.add(item)


def _items(view: View, branch: int) -> Iterator[tuple[tuple[int, int], str | int]]:
    """((iteration, rank), line or number of a child branch) of what happened on a branch."""
    breaks = {commit.iteration for commit in view.commits if commit.branch == branch}
    breaks |= {start for parent, start in view.lineage.branches.values() if parent == branch}
    breaks |= {event.iteration for event in view.events if event.branch == branch}
    ancestors = view.ancestors
    rows: list[list[Version]] = []
    for version in (one for one in view.lineage.versions if one.branch == branch):
        last = rows[-1][-1] if rows else None
        follows = last is not None and last.iteration not in breaks and version.parent == last.version
        if follows and last is not None and (last.version in ancestors) == (version.version in ancestors):
            rows[-1].append(version)
        else:
            rows.append([version])
    for row in rows:
        yield (row[-1].iteration, 0), _versions_line(row, row[0].version in ancestors)
    for commit in view.commits:
        if commit.branch == branch:
            text = f"[green]commit {commit.sequence}[/green] at iteration {commit.iteration}: v{commit.weight_version}"
            yield (commit.iteration, 2), text
    for event in view.events:
        if event.branch == branch:
            yield (event.iteration, 1), f"[cyan]{event.kind}[/cyan] {escape(event.message)}"
    for child, (parent, start) in view.lineage.branches.items():
        if parent == branch:
            yield (start, 3), child


def _versions_line(row: list[Version], is_ancestor: bool) -> str:
    first, last = row[0], row[-1]
    versions = f"v{first.version}" if first is last else f"v{first.version} to v{last.version}"
    begin = f"iteration {first.iteration}" if first.iteration else "start"
    if first.iteration == last.iteration:
        iterations = begin
    elif first.iteration:
        iterations = f"iterations {first.iteration} to {last.iteration}"
    else:
        iterations = f"{begin} to iteration {last.iteration}"
    text = f"{versions}  {iterations}"
    return text if is_ancestor else f"[dim]{text}  (left behind)[/dim]"
