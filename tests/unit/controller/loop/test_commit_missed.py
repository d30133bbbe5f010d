"""A commit that comes about beside the rollout, and finds no room, or is given up."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from crescendo.common.config.schema import Config
from crescendo.common.errors import DiskFullError
from crescendo.common.runfolder import RunFolder
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.commits import Commits, list_manifests
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.state import RunState
from crescendo.controller.loop.waits import Patience
from crescendo.proto.v1 import common_pb2, trainer_pb2


class Trainer:
    """Its files are there when `write` is set; with full it finds no room for them."""

    def __init__(self, *, full: bool = False) -> None:
        self.full, self.write = full, asyncio.Event()

    async def call(self, method: str, request: Any, timeout_s: float) -> trainer_pb2.SaveCheckpointResponse:
        if not request.only_begin:
            await self.write.wait()
            if self.full:
                raise DiskFullError("no room")
        return trainer_pb2.SaveCheckpointResponse()


def commits_in(tmp_path: Path) -> Commits:
    folder = RunFolder.create(tmp_path / "run", "run")
    board = Board(folder, "run")
    patience = Patience(board, Control(), limit_s=1, gave_up=lambda: None)
    lease = SimpleNamespace(fence=common_pb2.Fence(epoch=1, counter=1))

    async def commit(*arguments: Any) -> None:
        return None

    return Commits(Config(), folder, cast(Any, SimpleNamespace(commit=commit)), cast(Any, lease), board, patience)


async def test_what_is_committed_is_the_state_as_it_was_copied(tmp_path: Path) -> None:
    commits, trainer, state = commits_in(tmp_path), Trainer(), RunState(iteration=4)
    await commits.begin(cast(Any, trainer), state)
    commits.go_on(cast(Any, trainer))
    state.iteration = 5
    trainer.write.set()
    await commits.settle()
    assert [(one.iteration, one.state["iteration"]) for one in list_manifests(commits.folder)] == [(4, 4)]


async def test_a_full_disk_makes_it_overdue_and_the_next_commit_is_waited_for(tmp_path: Path) -> None:
    commits, trainer, state = commits_in(tmp_path), Trainer(full=True), RunState(iteration=4)
    await commits.begin(cast(Any, trainer), state)
    commits.go_on(cast(Any, trainer))
    trainer.write.set()
    await commits.settle()
    assert commits.overdue
    assert [event.kind for event in commits.board.events] == ["commit.missed"]
    trainer.full = False
    await commits.commit(cast(Any, trainer), state)
    assert not commits.overdue
    assert len(list_manifests(commits.folder)) == 1


async def test_none_appears_after_it_was_abandoned(tmp_path: Path) -> None:
    commits, trainer = commits_in(tmp_path), Trainer()
    await commits.begin(cast(Any, trainer), RunState(iteration=4))
    commits.go_on(cast(Any, trainer))
    await asyncio.sleep(0)
    await commits.abandon()
    trainer.write.set()
    await asyncio.sleep(0.01)
    await commits.settle()
    assert list_manifests(commits.folder) == []
