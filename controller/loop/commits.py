"""Commits: a checkpoint, and the manifest whose appearance is the only commit point.

    trainer saves files under a folder with the fence in its name        crash here: nothing happened
    manifest written beside it, renamed into place, fsynced              <- the commit
    buffer rolls to it (idempotent), old commits are pruned              crash here: done again at resume

`resume` reads the newest manifest; whatever lies above it comes from the redo log (recovery.py).
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
from crescendo.common.errors import CheckpointError
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.controller.launch import Worker
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.lease import DeviceLease
from crescendo.controller.loop.state import RunState
from crescendo.proto.v1 import trainer_pb2

MANIFEST_VERSION = 1
MANIFEST_NAME = re.compile(r"commit-(\d{8})\.json")


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


def manifest_path(folder: RunFolder, sequence: int) -> Path:
    """Where a commit's manifest lies."""
    return folder.checkpoints / f"commit-{sequence:08d}.json"


def list_manifests(folder: RunFolder) -> list[Manifest]:
    """All commits, oldest first; raises CheckpointError for a damaged or foreign manifest."""
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


@dataclass
class Commits:
    """Writes and prunes commits."""

    config: Config
    folder: RunFolder
    buffer: ExperienceBuffer
    lease: DeviceLease
    board: Board

    async def commit(
        self, trainer: Worker, state: RunState, *, keep: int = 3, protect_from: int | None = None
    ) -> Manifest:
        """Saves a checkpoint and commits the state with it; the trainer must be resident. Returns the manifest.

        keep: newest commits that survive; protect_from: commits of this iteration and later survive too,
        because a gate may return to them.
        """
        branch, iteration = state.branch, state.iteration
        state.seconds = dict(self.board.seconds)
        with self.board.phase("commit", iteration):
            earlier = await asyncio.to_thread(list_manifests, self.folder)
            sequence = earlier[-1].sequence + 1 if earlier else 1
            fence = self.lease.fence
            name = f"i{iteration:06d}-e{fence.epoch}-c{fence.counter}-n{sequence}"
            request = trainer_pb2.SaveCheckpointRequest(
                fence=fence, idempotency_key=f"save-{name}", path=str((self.folder.checkpoints / name).resolve())
            )
            saved = await trainer.call("SaveCheckpoint", request, timeout_s=self.config.deadlines.checkpoint_s)
            failpoints.reach("commit.saved")
            manifest = Manifest(
                sequence=sequence,
                folder=name,
                branch=branch,
                iteration=iteration,
                weight_version=state.weight_version,
                state=state.to_dict(),
                files=[(file.path, file.num_bytes, file.digest) for file in saved.files],
            )
            path = manifest_path(self.folder, sequence)
            await asyncio.to_thread(write_atomically, path, json.dumps(asdict(manifest), indent=1))
            failpoints.reach("commit.renamed")
            await self.buffer.commit(fence, branch, iteration, path.name)
            failpoints.reach("commit.rolled")
            self.board.status.committed_iteration = iteration
            await asyncio.to_thread(self._prune, [*earlier, manifest], keep, protect_from)
        return manifest

    def _prune(self, manifests: list[Manifest], keep: int, protect_from: int | None) -> None:
        for old in manifests[:-keep]:
            if protect_from is not None and old.iteration >= protect_from:
                continue
            # The manifest goes first: a folder without one counts for nothing.
            manifest_path(self.folder, old.sequence).unlink(missing_ok=True)
            failpoints.reach("prune.unlisted")
            shutil.rmtree(self.folder.checkpoints / old.folder, ignore_errors=True)

    async def load(self, trainer: Worker, manifest: Manifest, weight_version: int) -> None:
        """Loads a commit's checkpoint into the trainer; raises CheckpointError when a file is missing or damaged."""
        folder = self.folder.checkpoints / manifest.folder
        for name, num_bytes, _ in manifest.files:
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
