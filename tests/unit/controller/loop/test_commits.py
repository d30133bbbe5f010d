"""Commits against a controller that was replaced: what it still writes does not count."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from crescendo.common.errors import StaleFenceError
from crescendo.common.runfolder import RunFolder
from crescendo.controller.loop.commits import Manifest, _place, list_manifests, manifest_path, next_sequence, seal


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", "run")


def write(folder: RunFolder, sequence: int, epoch: int) -> None:
    manifest = Manifest(
        sequence=sequence, folder=f"i{sequence:06d}-e{epoch}-c0-n{sequence}", branch=0, iteration=sequence,
        weight_version=1, state={}, files=[],
    )  # fmt: skip
    _place(manifest_path(folder, sequence), json.dumps(asdict(manifest)))


def found(folder: RunFolder) -> list[tuple[int, int]]:
    return [(manifest.sequence, manifest.epoch) for manifest in list_manifests(folder)]


def test_a_late_commit_of_an_older_epoch_does_not_count(folder: RunFolder) -> None:
    write(folder, 1, epoch=1)
    write(folder, 2, epoch=1)
    seal(folder, epoch=4)
    write(folder, 3, epoch=1)  # the zombie
    assert found(folder) == [(1, 1), (2, 1)]
    assert next_sequence(folder) == 4
    write(folder, 4, epoch=4)
    write(folder, 5, epoch=6)  # renewed by the same controller
    assert found(folder) == [(1, 1), (2, 1), (4, 4), (5, 6)]
    seal(folder, epoch=7)
    write(folder, 6, epoch=6)
    assert found(folder) == [(1, 1), (2, 1), (4, 4), (5, 6)]


def test_a_commit_never_takes_the_place_of_another(folder: RunFolder) -> None:
    write(folder, 1, epoch=2)
    with pytest.raises(StaleFenceError, match="another controller"):
        write(folder, 1, epoch=1)
    assert found(folder) == [(1, 2)]
    assert not list(folder.checkpoints.glob("seal-*"))
