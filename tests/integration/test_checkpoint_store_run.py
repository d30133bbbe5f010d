"""A run whose checkpoints lie in a store: with its volume lost, its buffer lost, and the store away.

Controller, loop, buffer and store are real; the trainer keeps nothing on its machine (light_services.py). Deaths around
an upload: test_crash_points.py.
"""

import json
import shutil
from pathlib import Path

import pytest

from crescendo.common.runfolder import RunFolder
from crescendo.controller.loop.commits import list_manifests
from tests.integration.light_run import LightRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def prepare(tmp_path: Path) -> tuple[LightRun, Path]:
    store = tmp_path / "store"
    run = LightRun.prepare(tmp_path, f"checkpoint_store.url=file://{store}")
    return run, store / run.folder.run_id()


def assert_store_matches(run: LightRun, store: Path) -> None:
    """It holds what counts, whole, and nothing else."""
    manifests = list_manifests(run.folder)
    assert {path.name for path in (store / "checkpoints").iterdir()} == {one.folder for one in manifests}
    for one in manifests:
        for name, num_bytes, _ in one.files:
            assert (store / "checkpoints" / one.folder / name).stat().st_size == num_bytes
    here = {path.name: path.read_text() for path in run.folder.checkpoints.glob("[cs]*-*.json")}
    assert {path.name: path.read_text() for path in (store / "commits").iterdir()} == here


def test_a_lost_volume_costs_its_logs_only_while_the_buffer_lives(tmp_path: Path) -> None:
    run, store = prepare(tmp_path)
    assert run.live(f"train.recorded:4:{tmp_path / 'died'}") == -9, run.last_words()
    committed = max(one.iteration for one in list_manifests(run.folder))
    lost = RunFolder(run.folder.root.rename(tmp_path / "lost"))
    folder = RunFolder.create(run.folder.root, "light", lost.run_id())
    shutil.copy(lost.config, folder.config)
    shutil.rmtree(folder.buffer)
    shutil.copytree(lost.buffer, folder.buffer, ignore=shutil.ignore_patterns("*.sock"))
    assert run.live() == 0, run.last_words()
    assert run.events("run.restored")[0]["message"].endswith(f"iteration {committed}")
    assert_store_matches(run, store)


def test_commits_without_their_buffer_are_refused(tmp_path: Path) -> None:
    run, _ = prepare(tmp_path)
    assert run.live(f"train.recorded:4:{tmp_path / 'died'}") == -9, run.last_words()
    lost = RunFolder(run.folder.root.rename(tmp_path / "lost"))
    folder = RunFolder.create(run.folder.root, "light", lost.run_id())
    shutil.copy(lost.config, folder.config)
    assert run.live() == 2
    failure = json.loads((folder.root / "failure.json").read_text())["error"]
    assert "its buffer is new" in failure
    assert "Restore the buffer's volume" in failure


def test_a_store_that_takes_nothing_is_found_out_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    run, _ = prepare(tmp_path)
    assert run.live() != 0
    failure = json.loads((run.folder.root / "failure.json").read_text())["error"]
    assert "the checkpoint store did not answer well" in failure
    assert not list_manifests(run.folder)
