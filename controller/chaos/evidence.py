"""Everything that the audit looks at, gathered from outside after a run: ledger, redo log, manifests, archive, files.

Nothing here asks the controller or reads its counters. The ledger is read group by group (a scan of the run's
keys), not by its lists; batches come from the redo log, the server's append-only file and the archive.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from crescendo.buffer import EmbeddedServer, RedisBuffer, WeightRecord
from crescendo.buffer.archive import archive_url
from crescendo.buffer.client import Client, open_client
from crescendo.common.config import Config, load_resolved
from crescendo.common.errors import BufferStateError
from crescendo.common.runfolder import RunFolder
from crescendo.common.telemetry import read_jsonl
from crescendo.common.types import Group, GroupId, GroupState, Trajectory, TrajectoryId
from crescendo.controller.chaos.history import History, read_history
from crescendo.controller.loop.commits import Manifest, list_manifests
from crescendo.controller.store import CHECKPOINTS, open_store

_SCAN_COUNT = 1000
_STATES_WITH_TOKENS = (GroupState.CONSUMED, GroupState.COMPLETE)


@dataclass(frozen=True)
class Origin:
    """Who made tokens of a trajectory, with which weights."""

    worker_id: str
    weight_version: int
    num_tokens: int


@dataclass(frozen=True)
class Attested:
    """A line of attestations.jsonl."""

    worker_id: str
    version: int
    digest: str


@dataclass
class Evidence:
    """A finished (or dead) run, as found. branches: number to (parent, iteration it starts from)."""

    config: Config
    finished: bool
    groups: dict[GroupId, Group]
    origins: dict[TrajectoryId, tuple[Origin, ...]]
    archived_groups: set[GroupId]  # whose rows the archive's files hold
    branches: dict[int, tuple[int, int]]
    manifests: list[Manifest]
    missing_files: list[str]
    weights: list[WeightRecord]
    attested: list[Attested]
    history: History
    moments: list[float] = field(default_factory=list)  # Unix seconds of every event and row, in order


async def gather(folder: RunFolder) -> Evidence:
    """Reads a run folder and its buffer; an embedded server is started for it and stopped again.

    Raises WorkerStartError or WorkerLostError when the buffer does not come up.
    """
    config = load_resolved(folder.config)
    if config.buffer.name != "embedded":
        return await _read(folder, config, config.buffer.url)
    server = EmbeddedServer.from_config(folder.buffer, config.buffer)
    try:
        return await _read(folder, config, await asyncio.to_thread(server.start))
    finally:
        await asyncio.to_thread(server.stop)


async def _read(folder: RunFolder, config: Config, url: str) -> Evidence:
    client = await open_client(url, folder.run_id())
    buffer = RedisBuffer(client)
    try:
        groups = await _groups(client, buffer)
        branches = await buffer.branches()
        archived = (
            await asyncio.to_thread(_archived, config, folder) if any(g.archived for g in groups.values()) else {}
        )
        manifests = list_manifests(folder)
        history = _with_redo_log(read_history(folder.buffer, folder.run_id()), await _redo_log(buffer, branches))
        return Evidence(
            config=config,
            finished=folder.summary.exists(),
            groups=groups,
            origins=await _origins(buffer, list(groups.values())) | archived,
            archived_groups={GroupId(name.rpartition("-")[0]) for name in archived},
            branches=branches,
            manifests=manifests,
            missing_files=await asyncio.to_thread(_missing_files, config, folder, manifests),
            weights=await buffer.lineage(),
            attested=[
                Attested(str(row["worker_id"]), int(row["version"]), str(row["digest"]))
                for row in read_jsonl(folder.attestations)
            ],
            history=history,
            moments=_moments(folder),
        )
    finally:
        await buffer.close()


async def _groups(client: Client, buffer: RedisBuffer) -> dict[GroupId, Group]:
    """Every group that has a record, whichever list it is in."""
    found = {
        GroupId(name.decode()) async for name, _ in client.redis.hscan_iter(client.keys.records, count=_SCAN_COUNT)
    }
    loaded = await buffer.load_groups(sorted(found), with_trajectories=False)
    return {group.group_id: group for group in loaded}


async def _origins(buffer: RedisBuffer, groups: Sequence[Group]) -> dict[TrajectoryId, tuple[Origin, ...]]:
    here = [group.group_id for group in groups if group.state in _STATES_WITH_TOKENS and not group.archived]
    loaded = await buffer.load_groups(here)
    return {one.trajectory_id: origins_of(one) for group in loaded for one in group.trajectories}


def origins_of(trajectory: Trajectory) -> tuple[Origin, ...]:
    """Who made a trajectory, segment by segment; a tool's turns are nobody's."""
    return tuple(
        Origin(segment.worker_id, segment.weight_version, len(segment.token_ids))
        for segment in trajectory.segments
        if not segment.tool_turn
    )


def _archived(config: Config, folder: RunFolder) -> dict[TrajectoryId, tuple[Origin, ...]]:
    """Who made the trajectories whose payload lies in the archive; raises DataError when a file is missing or cut."""
    # Only here, because the Parquet library takes a second to import.
    from crescendo.buffer.archive.reader import Archive

    return {
        TrajectoryId(row["trajectory_id"]): tuple(
            Origin(part["worker_id"], part["weight_version"], part["num_tokens"])
            for part in row["segments"]
            if not part["tool_turn"]
        )
        for group in Archive.open(archive_url(config, folder)).groups(["trajectory_id", "segments"])
        for row in group.rows
    }


async def _redo_log(buffer: RedisBuffer, branches: Iterable[int]) -> History:
    found = History()
    for branch in (0, *branches):
        for batch in await buffer.batches_after(branch, -1):
            found.batches[branch, batch.iteration] = [batch]
    return found


def _with_redo_log(history: History, redo: History) -> History:
    for at, batches in redo.batches.items():
        known = history.batches.setdefault(at, [])
        known += [batch for batch in batches if batch not in known]
    return history


def _missing_files(config: Config, folder: RunFolder, manifests: Sequence[Manifest]) -> list[str]:
    """Files that a manifest names and that are not there, or not as long as it says."""
    store = open_store(config, folder)

    def size(path: str) -> int:
        if store is not None:
            return store.size(f"{CHECKPOINTS}/{path}")
        here = folder.checkpoints / path
        return here.stat().st_size if here.is_file() else -1

    return [
        f"{manifest.folder}/{name} of commit {manifest.sequence}"
        for manifest in manifests
        for name, num_bytes, _ in manifest.files
        if size(f"{manifest.folder}/{name}") != num_bytes
    ]


def _moments(folder: RunFolder) -> list[float]:
    files = (folder.events, folder.metrics)
    found = sorted(float(row["unix_seconds"]) for path in files for row in read_jsonl(path) if "unix_seconds" in row)
    if not found:
        raise BufferStateError(f"{folder.root} has no events: the run never started.", fix="See its logs folder.")
    return found
