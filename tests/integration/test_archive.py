"""The archiver on a real Valkey: killed at each instant, replaced, outlived by a zombie, kept from its disk."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from crescendo.buffer import EmbeddedServer, RedisBuffer, connect
from crescendo.buffer.archive.archiver import Archiver, RunFacts
from crescendo.buffer.archive.reader import Archive
from crescendo.buffer.archive.store import ArchiveManifest, ArchiveStore
from crescendo.cli.lineage import collect
from crescendo.common import errors, failpoints
from crescendo.common.config import load_config, save_resolved
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.common.service import ServiceSpec
from crescendo.common.types import Group, GroupId, GroupState
from crescendo.proto.v1 import archive_pb2, archive_pb2_grpc
from tests.contract.buffer_cases import Driver, ManualClock, batch, new_group
from tests.integration.run_process import RECIPE

ITERATIONS = 3
GROUPS = [new_group(draw, iteration=i) for i in range(1, ITERATIONS + 1) for draw in range(2)]
POINTS = ("archive.writing", "archive.written", "archive.named", "archive.trimmed")
TOKEN = "secret"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    made = EmbeddedServer(tmp_path_factory.mktemp("valkey") / "buffer")
    made.start()
    yield made
    made.stop()


@dataclass
class Run:
    """A run whose three iterations are trained on and committed."""

    folder: RunFolder
    driver: Driver
    buffer: RedisBuffer
    server: EmbeddedServer

    @property
    def url(self) -> str:
        return str(self.folder.archive)

    async def archiver(self) -> Archiver:
        made = Archiver(self.buffer, ArchiveStore(self.url), RunFacts("run"))
        await made.take_over()
        return made

    def start_process(self, failpoint: str = "") -> tuple["subprocess.Popen[bytes]", Path]:
        control = self.folder.controller.parent
        options = {"url": self.url, "every_s": "0.2", "chat_template": "false"}
        spec = ServiceSpec(
            "archiver",
            "archiver-0",
            str(self.folder.root),
            self.folder.run_id(),
            TOKEN,
            self.server.url,
            options=options,
        )
        (control / "spec.json").write_text(spec.to_json())
        ready = control / "ready"
        ready.unlink(missing_ok=True)
        environment = {**os.environ, failpoints.VARIABLE: failpoint} if failpoint else dict(os.environ)
        command = [sys.executable, "-m", "crescendo.buffer.archive", "archiver", "--spec-file", control / "spec.json"]
        return subprocess.Popen([*command, "--ready-file", ready], env=environment), ready


@pytest.fixture
async def run(server: EmbeddedServer, tmp_path: Path) -> AsyncIterator[Run]:
    folder = RunFolder.create(tmp_path / "run", "run")
    buffer = await connect(server.url, folder.run_id())
    driver = await Driver.take_over(buffer, ManualClock())
    await driver.buffer.next_version(driver.fence, parent=0, branch=0, iteration=0)
    for iteration in range(1, ITERATIONS + 1):
        groups = [group for group in GROUPS if group.iteration == iteration]
        await driver.complete(*groups)
        await buffer.record_batch(driver.fence, batch(*groups, iteration=iteration))
    await buffer.commit(driver.fence, 0, ITERATIONS, "m")
    yield Run(folder, driver, buffer, server)
    await buffer.close()


async def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.02)


def check_whole(url: str) -> None:
    """Every trajectory is in the archive once, with its tokens."""
    archive = Archive.open(url)
    rows = [row for group in archive.groups() for row in group.rows]
    assert Counter(row["group_id"] for row in rows) == {group.group_id: 2 for group in GROUPS}
    assert len({row["trajectory_id"] for row in rows}) == len(rows)
    assert all(row["token_ids"] == [0, 1, 2, 3] for row in rows)
    assert all(archive.survives(row) for row in rows)


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_any_instant_nothing_is_lost_or_told_twice(run: Run, tmp_path: Path, point: str) -> None:
    marker = tmp_path / "marker"
    process, _ = run.start_process(f"{point}:1:{marker}")
    assert await asyncio.to_thread(process.wait, 60) == -signal.SIGKILL
    assert marker.exists()
    in_buffer = set(await run.buffer.groups(GroupState.CONSUMED))
    if point in ("archive.writing", "archive.written"):
        with pytest.raises(errors.DataError, match="no archive"):
            Archive.open(run.url)
    if point != "archive.trimmed":
        assert in_buffer == {group.group_id for group in GROUPS}, "nothing is trimmed before a manifest names it"
    else:
        assert in_buffer == set()

    archiver = await run.archiver()
    await archiver.sweep()
    assert archiver.counts.num_groups == (len(GROUPS) if point in ("archive.writing", "archive.written") else 0)
    assert await run.buffer.groups(GroupState.CONSUMED) == []
    check_whole(run.url)


async def test_the_process_archives_by_itself_and_on_request(run: Run) -> None:
    late = new_group(0, iteration=4)
    process, ready = run.start_process()
    try:
        await until(ready.exists)
        client = Client(Endpoint(ready.read_text().strip(), TOKEN), archive_pb2_grpc.ArchiveServiceStub)
        await run.driver.complete(late)
        await run.buffer.record_batch(run.driver.fence, batch(late, iteration=4))
        await client.call(client.stub.Flush, archive_pb2.FlushArchiveRequest(), timeout_s=30)
        assert await run.buffer.groups(GroupState.CONSUMED) == [late.group_id], "above the commit: the redo log's"
        check_whole(run.url)
        await run.buffer.commit(run.driver.fence, 0, 4, "m4")
        await until(lambda: len(list((run.folder.archive / "manifests").glob("t*.json"))) == 2)
        await client.call(client.stub.Flush, archive_pb2.FlushArchiveRequest(), timeout_s=30)
        assert await run.buffer.groups(GroupState.CONSUMED) == []
        status = await client.call(client.stub.GetStatus, archive_pb2.GetArchiveStatusRequest(), timeout_s=30)
        assert (status.counts.num_groups, status.last_error) == (len(GROUPS) + 1, "")
        assert status.worker.role == "archiver"
        await client.close()
        await run.buffer.acquire_archiver()
        assert await asyncio.to_thread(process.wait, 30) == 0, "a newer archiver ends it"
    finally:
        process.kill()
        process.wait()


async def test_a_zombie_writes_nothing_that_counts_twice(run: Run) -> None:
    awake = threading.Event()

    class Stopped(ArchiveStore):
        """Sleeps before it names its files, as a stopped process would."""

        def put_manifest(self, manifest: ArchiveManifest) -> None:
            assert awake.wait(30)
            super().put_manifest(manifest)

    zombie = Archiver(run.buffer, Stopped(run.url), RunFacts("run"))
    await zombie.take_over()
    sweeping = asyncio.create_task(zombie.sweep())
    await until(lambda: zombie.counts.num_groups == len(GROUPS))
    successor = await run.archiver()
    awake.set()
    with pytest.raises(errors.StaleFenceError):
        await sweeping
    with pytest.raises(errors.StaleFenceError):
        await zombie.sweep()
    assert len(await run.buffer.groups(GroupState.CONSUMED)) == len(GROUPS), "its trim was refused"
    await successor.sweep()
    assert await run.buffer.groups(GroupState.CONSUMED) == []
    check_whole(run.url)
    assert len(Archive.open(run.url).files) == 2 * ITERATIONS, "its files lie there; each group is read once"


async def test_an_archive_that_cannot_be_written_costs_nothing(run: Run) -> None:
    run.folder.archive.write_text("a file where a folder should be")
    archiver = await run.archiver()
    with pytest.raises(errors.EnvironmentProblem, match="can't be written"):
        await archiver.sweep()
    assert len(await run.buffer.groups(GroupState.CONSUMED)) == len(GROUPS)
    run.folder.archive.unlink()
    await archiver.sweep()
    check_whole(run.url)


async def test_a_damaged_group_is_set_aside_by_itself(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, load = GROUPS[0].group_id, run.buffer.load_groups

    async def load_groups(ids: Sequence[GroupId], *, with_trajectories: bool = True) -> list[Group]:
        if with_trajectories and broken in ids:
            raise errors.BufferStateError("a segment is damaged")
        return await load(ids, with_trajectories=with_trajectories)

    monkeypatch.setattr(run.buffer, "load_groups", load_groups)
    archiver = await run.archiver()
    await archiver.sweep()
    assert await run.buffer.groups(GroupState.CONSUMED) == [broken]
    assert archiver.counts.num_set_aside == 1
    assert Archive.open(run.url).num_groups == len(GROUPS) - 1


async def test_a_rollback_is_told_by_the_lineage(run: Run) -> None:
    archiver = await run.archiver()
    await archiver.sweep()
    await run.buffer.open_branch(run.driver.fence, parent=0, from_iteration=1, drop_partials=True)
    after = new_group(0, iteration=4, branch=1)
    await run.driver.complete(after)
    await run.buffer.record_batch(run.driver.fence, batch(after, iteration=4, branch=1))
    await run.buffer.commit(run.driver.fence, 1, 4, "m4")
    await archiver.sweep()
    assert await run.buffer.groups(GroupState.ABANDONED) == [], "archived before they were abandoned"
    archive = Archive.open(run.url)
    survivors = {row["group_id"] for group in archive.groups() for row in group.rows if archive.survives(row)}
    assert survivors == {*(group.group_id for group in GROUPS if group.iteration == 1), after.group_id}
    assert archive.lineage.line() == {1: None, 0: 1}


async def test_damaged_archives_are_named(run: Run) -> None:
    await (await run.archiver()).sweep()
    (manifest,) = (run.folder.archive / "manifests").iterdir()
    first = Archive.open(run.url).files[0]
    path = run.folder.archive / first.path
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(errors.DataError, match="bytes long"):
        Archive.open(run.url)
    path.unlink()
    with pytest.raises(errors.DataError, match="missing"):
        Archive.open(run.url)
    path.write_bytes(b"x" * len(whole))
    with pytest.raises(errors.DataError, match="damaged"):
        list(Archive.open(run.url).groups())
    stored = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**stored, "manifest_version": 99}))
    with pytest.raises(errors.DataError, match="version 99"):
        Archive.open(run.url)
    manifest.write_text("{")
    with pytest.raises(errors.DataError, match="damaged"):
        Archive.open(run.url)


async def test_many_groups_take_several_pages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crescendo.buffer.archive.archiver.GROUPS_PER_SWEEP", 4)
    monkeypatch.setattr("crescendo.buffer.archive.archiver.GROUPS_PER_LOAD", 1)
    dropped = GroupId(new_group(9, iteration=3).group_id)
    await run.driver.open(new_group(9, iteration=3))
    await run.buffer.drop_group(run.driver.fence, dropped, "bad prompt")
    archiver = await run.archiver()
    assert await archiver.sweep() == len(GROUPS) + 1
    archive = Archive.open(run.url)
    assert archive.num_groups == len(GROUPS) + 1
    (row, _) = next(group.rows for group in archive.groups() if group.group_id == dropped)
    assert (row["group_state"], row["group_drop_reason"], row["state"]) == ("dropped", "bad prompt", "dropped")
    assert not archive.survives(row)


async def test_the_lineage_of_a_living_run_comes_from_its_buffer(run: Run, server: EmbeddedServer) -> None:
    config = load_config(RECIPE, [f"run.folder={run.folder.root.parent}"])
    config.buffer.name, config.buffer.url = "external", server.url
    save_resolved(config, run.folder.config)
    assert (await asyncio.to_thread(collect, run.folder)).source == "run folder", "no controller lives"
    identity = {"address": "127.0.0.1:1", "pid": os.getpid(), "started_unix_s": time.time()}
    write_atomically(run.folder.controller, json.dumps(identity))
    view = await asyncio.to_thread(collect, run.folder)
    assert (view.source, view.lineage.commit) == ("buffer", (0, ITERATIONS))
    assert [one.version for one in view.lineage.versions] == [1]
