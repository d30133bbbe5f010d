"""Commits: a checkpoint, and the manifest whose appearance is the only commit point.

`resume` reads the newest manifest; whatever lies above it comes from the redo log (recovery.py). Everything can die
anywhere. These are the crash points, by the names that common/failpoints.py knows them by, and what the next
life finds there; tests/integration/test_crash_points.py kills at each.

    iteration
      groups opened             sample.opened        they are open; the same draw opens them again, once
      engines begin             rollout.begun        leases of the dead are taken back, tokens flushed so far stay
        a claim                 engine.claimed       as above
        a step                  engine.stepped       as above; at most flush_tokens a trajectory are generated again
        a flush                 engine.flushed       as above
      all parked or finished    rollout.parked       nothing is generated again
      all scored                score.settled        nothing is scored again
      devices with the trainer  switch.reclaimed     the groups are complete and wait to be trained
      version issued            train.numbered       that number is never used
      batch in the redo log     train.recorded       <- from here on trained by resumption, never rolled out again
      step taken in the trainer trainer.stepped      lost with the process; taken again from the redo log
      answer in the controller  train.stepped        as above
      weights in the channel    trainer.published    shared memory is cleared, the version is published again
      version registered        publish.registered   as above
      bytes in the engine       engine.loaded        not attested, so nobody serves it
      attestation on record     publish.attested     on record, but nobody serves it
      engines admitted          publish.admitted     they are gone; new ones attest again
      held-out prompts answered validate.done        outside the ledger: validated again, or not at all
    commit
      files half written        trainer.saving       a folder that no manifest names; the next commit removes it
        in a checkpoint store   store.uploading      objects that no manifest names; as above
      files written             commit.saved         as above
      manifest beside its place rename commit-N.json as above
      manifest in place         commit.renamed       <- the commit; resumption rolls the buffer to it
      buffer rolled to it       commit.rolled        nothing is missing
      old manifest gone         prune.unlisted       a folder that no manifest names; the next commit removes it
    rollback, in a branch that counts once a manifest names it
      branch in the ledger      rollback.opened      the gate decides again and is given the same branch
      old checkpoint loaded     rollback.loaded      as above
      stage left                stage.left           as above; a person's promotion is repeated by resumption
    change of layout: the commit of the stage that follows stands, and resumption starts in its layout
      what does not fit ended   layout.ended         as above
    resumption: as often as it dies, it begins again
      checkpoint loaded         resume.loaded
      buffer rolled to it       resume.rolled
      a batch trained again     resume.retrained
    warm-up and end
      a chunk of SFT steps      sft.trained          trained again from the newest commit
      model exported            finish.exported      exported again
      last commit               finish.committed     the report alone is missing

With trainer.async_checkpoint the files are written, and the manifest follows, while the next rollout phase runs; the
state in it is that of its iteration, and it is in place before the next batch is trained. The same crash points hold: a
death in between leaves the commit before it, and the redo log has the batch.

A controller that was replaced and comes to life again (stopped, swapped out) may still get as far as the rename: the
one step that no server refuses. Two rules make it void. A manifest never takes the place of another. And a
controller that takes a run over writes a *seal* with the number of the newest commit it found: a manifest above
that number whose fence is older than the seal's does not count.
"""

import asyncio
import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crescendo.buffer import ExperienceBuffer
from crescendo.common import failpoints
from crescendo.common.config.schema import Config
from crescendo.common.errors import (
    CheckpointError,
    CrescendoError,
    DiskFullError,
    StaleFenceError,
    StoreUnavailableError,
)
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.controller.launch import Worker
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.lease import DeviceLease
from crescendo.controller.loop.state import RunState
from crescendo.controller.loop.waits import Patience, cancel, disk_full
from crescendo.controller.store import StoredCommits
from crescendo.proto.v1 import trainer_pb2

MANIFEST_VERSION = 1
MANIFEST_NAME = re.compile(r"commit-(\d{8})\.json")
FOLDER_NAME = re.compile(r"i\d+-e(\d+)-c\d+-n\d+")
PASSING = (DiskFullError, StoreUnavailableError)  # a commit that meets these is tried again


@dataclass(frozen=True)
class Manifest:
    """A commit. state: everything the controller needs to go on; files: (path, bytes, digest) of the checkpoint."""

    sequence: int
    folder: str
    branch: int
    iteration: int
    weight_version: int
    state: dict[str, Any]
    files: list[tuple[str, int, int]]
    manifest_version: int = MANIFEST_VERSION

    @property
    def epoch(self) -> int:
        """Of the controller that wrote it."""
        found = FOLDER_NAME.fullmatch(self.folder)
        return int(found[1]) if found else 0


def manifest_path(folder: RunFolder, sequence: int) -> Path:
    """Where a commit's manifest lies."""
    return folder.checkpoints / f"commit-{sequence:08d}.json"


def seal(folder: RunFolder, epoch: int) -> None:
    """From now on manifests of older epochs above the newest commit do not count."""
    manifests = list_manifests(folder)
    path = folder.checkpoints / f"seal-{epoch:08d}.json"
    text = json.dumps({"epoch": epoch, "newest": manifests[-1].sequence if manifests else 0})
    try:
        write_atomically(path, text)
    except OSError as error:
        raise disk_full(error, path) or error from error


def list_manifests(folder: RunFolder) -> list[Manifest]:
    """All commits that count, oldest first; raises CheckpointError for a damaged or foreign manifest."""
    seals = [json.loads(path.read_text()) for path in folder.checkpoints.glob("seal-*.json")]

    def counts(manifest: Manifest) -> bool:
        return all(manifest.epoch >= each["epoch"] or manifest.sequence <= each["newest"] for each in seals)

    return [manifest for manifest in _read_manifests(folder) if counts(manifest)]


def _read_manifests(folder: RunFolder) -> list[Manifest]:
    found = []
    for path in sorted(folder.checkpoints.glob("commit-*.json")):
        if not MANIFEST_NAME.fullmatch(path.name):
            continue
        try:
            stored = json.loads(path.read_text())
            if stored["manifest_version"] != MANIFEST_VERSION:
                raise CheckpointError(
                    f"{path} has version {stored['manifest_version']}; this Crescendo reads {MANIFEST_VERSION}.",
                    fix="Use the Crescendo version that wrote it.",
                )
            stored["files"] = [tuple(entry) for entry in stored["files"]]
            found.append(Manifest(**stored))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged: {error!r}.", fix="Move it away to go on from the commit before it."
            ) from error
    return found


def next_sequence(folder: RunFolder) -> int:
    """A number above those of all manifests, whether they count or not."""
    names = (MANIFEST_NAME.fullmatch(path.name) for path in folder.checkpoints.glob("commit-*.json"))
    return max((int(name[1]) for name in names if name), default=0) + 1


def _place(path: Path, text: str) -> None:
    """The commit point. Raises StaleFenceError when another controller committed under this number."""
    try:
        write_atomically(path, text, exclusive=True)
    except FileExistsError:
        raise StaleFenceError(f"{path} is there already: another controller has taken the run over.") from None
    except OSError as error:
        raise disk_full(error, path) or error from error


@dataclass(frozen=True)
class _Planned:
    """A commit before its files are there. state: as it stood when the trainer's was copied."""

    name: str
    sequence: int
    state: RunState
    earlier: list[Manifest]
    keep: int
    protect_from: int | None


@dataclass
class Commits:
    """Writes and prunes commits.

    overdue: one could not be written beside the run for want of room or of the store; stored: where checkpoints lie in
    a checkpoint store.
    """

    config: Config
    folder: RunFolder
    buffer: ExperienceBuffer
    lease: DeviceLease
    board: Board
    patience: Patience
    stored: StoredCommits | None = None
    overdue: bool = False
    _begun: _Planned | None = None
    _beside: asyncio.Task[None] | None = None
    _placing: asyncio.Future[None] | None = None

    async def commit(self, trainer: Worker, state: RunState, *, keep: int = 3, protect_from: int | None = None) -> None:
        """Saves a checkpoint and commits the state with it; the trainer must be resident.

        keep: newest commits that survive; protect_from: commits of this iteration and later survive too,
        because a gate may return to them.
        """
        await self.settle()
        with self.board.phase("commit", state.iteration):
            planned = await self._plan(state, keep, protect_from)
            saved = await self.patience.through(lambda: self._save(trainer, planned), waits_for=PASSING)
            await self._complete(planned, saved)

    async def begin(self, trainer: Worker, state: RunState, *, keep: int = 3, protect_from: int | None = None) -> None:
        """As `commit`, but returns when the trainer has copied its state to host memory; `go_on` does the rest."""
        await self.settle()
        with self.board.phase("commit", state.iteration):
            planned = await self._plan(state, keep, protect_from)
            await self._save(trainer, planned, only_begin=True)
            self._begun = planned

    def go_on(self, trainer: Worker) -> None:
        """Lets the commit that was begun come about beside the rollout; no devices change hands before `settle`."""
        planned, self._begun = self._begun, None
        if planned is not None:
            self._beside = asyncio.create_task(self._finish(trainer, planned), name="commit")

    async def settle(self) -> None:
        """Waits for the commit that comes about beside the run; raises what stopped it."""
        beside, self._beside = self._beside, None
        if beside is not None:
            await beside

    async def abandon(self) -> None:
        """Drops a commit that is not in place yet; none appears after this."""
        self._begun = None
        if self._beside is not None:
            await cancel([self._beside])
            self._beside = None
        if self._placing is not None:
            await asyncio.wait([self._placing])

    async def _finish(self, trainer: Worker, planned: _Planned) -> None:
        try:
            saved = await self._save(trainer, planned)
        except PASSING as error:
            self.overdue = True
            message = f"iteration {planned.state.iteration} is not committed; the next one will be: {error}"
            self.board.event("commit.missed", message, severity="warning")
        else:
            await self._complete(planned, saved)

    async def _plan(self, state: RunState, keep: int, protect_from: int | None) -> _Planned:
        state.seconds = dict(self.board.seconds)
        sequence = await asyncio.to_thread(next_sequence, self.folder)
        fence = self.lease.fence
        return _Planned(
            name=f"i{state.iteration:06d}-e{fence.epoch}-c{fence.counter}-n{sequence}",
            sequence=sequence,
            state=RunState.from_dict(state.to_dict()),
            earlier=await asyncio.to_thread(list_manifests, self.folder),
            keep=keep,
            protect_from=protect_from,
        )

    async def _save(
        self, trainer: Worker, planned: _Planned, *, only_begin: bool = False
    ) -> trainer_pb2.SaveCheckpointResponse:
        request = trainer_pb2.SaveCheckpointRequest(
            fence=self.lease.fence,
            idempotency_key=f"save-{planned.name}",
            path=str((self.folder.checkpoints / planned.name).resolve()),
            only_begin=only_begin,
        )
        saved: trainer_pb2.SaveCheckpointResponse = await trainer.call(
            "SaveCheckpoint", request, timeout_s=self.config.deadlines.checkpoint_s
        )
        return saved

    async def _complete(self, planned: _Planned, saved: trainer_pb2.SaveCheckpointResponse) -> None:
        failpoints.reach("commit.saved")
        state = planned.state
        manifest = Manifest(
            sequence=planned.sequence,
            folder=planned.name,
            branch=state.branch,
            iteration=state.iteration,
            weight_version=state.weight_version,
            state=state.to_dict(),
            files=[(file.path, file.num_bytes, file.digest) for file in saved.files],
        )
        path = manifest_path(self.folder, planned.sequence)
        text = json.dumps(asdict(manifest), indent=1)
        await self.patience.through(lambda: self._place(path, text))
        failpoints.reach("commit.renamed")
        await self.buffer.commit(self.lease.fence, state.branch, state.iteration, path.name)
        failpoints.reach("commit.rolled")
        self.overdue = False
        self.board.status.committed_iteration = state.iteration
        await asyncio.to_thread(self._prune, [*planned.earlier, manifest], planned.keep, planned.protect_from)
        await self._match_store()

    async def _match_store(self) -> None:
        """What cannot be done now is done after the next commit: the manifest in the run folder counts already."""
        if self.stored is None:
            return
        named = {manifest.folder for manifest in list_manifests(self.folder)}
        try:
            await asyncio.to_thread(self.stored.match, named, self._is_past)
        except CrescendoError as error:
            self.board.event("commit.store", f"the checkpoint store is not up to date: {error}", severity="warning")

    async def _place(self, path: Path, text: str) -> None:
        """Seen to its end even when whoever waits is cancelled."""
        self._placing = asyncio.ensure_future(asyncio.to_thread(_place, path, text))
        await asyncio.shield(self._placing)

    def _prune(self, manifests: list[Manifest], keep: int, protect_from: int | None) -> None:
        for old in manifests[:-keep]:
            if protect_from is not None and old.iteration >= protect_from:
                continue
            # The manifest goes first: a folder without one counts for nothing.
            manifest_path(self.folder, old.sequence).unlink(missing_ok=True)
            failpoints.reach("prune.unlisted")
            shutil.rmtree(self.folder.checkpoints / old.folder, ignore_errors=True)
        self._sweep()

    def _sweep(self) -> None:
        """Removes what deaths left beside the manifests; folders of a newer controller are not ours to judge."""
        for scratch in self.folder.checkpoints.glob(".commit-*"):
            scratch.unlink(missing_ok=True)
        named = {manifest.folder for manifest in list_manifests(self.folder)}
        for path in self.folder.checkpoints.iterdir():
            if path.name not in named and self._is_past(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _is_past(self, name: str) -> bool:
        """Whether a checkpoint was begun by this controller or an earlier one."""
        found = FOLDER_NAME.fullmatch(name)
        return found is not None and int(found[1]) <= self.lease.fence.epoch

    async def load(self, trainer: Worker, manifest: Manifest, weight_version: int) -> None:
        """Loads a commit's checkpoint into the trainer; raises CheckpointError when a file is missing or damaged."""
        folder = self.folder.checkpoints / manifest.folder
        for name, num_bytes, _ in manifest.files if self.stored is None else ():
            path = folder / name
            if not path.is_file() or path.stat().st_size != num_bytes:
                raise CheckpointError(
                    f"{path} of commit {manifest.sequence} is missing or not {num_bytes} bytes long.",
                    fix=f"Restore it, or move {manifest_path(self.folder, manifest.sequence).name} away.",
                )
        request = trainer_pb2.LoadCheckpointRequest(
            fence=self.lease.fence,
            path=str(folder.resolve()),
            files=[trainer_pb2.CheckpointFile(path=p, num_bytes=n, digest=d) for p, n, d in manifest.files],
            weight_version=weight_version,
        )
        await trainer.call("LoadCheckpoint", request, timeout_s=self.config.deadlines.checkpoint_s)
