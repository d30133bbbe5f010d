"""Checkpoints that are written while the next rollout runs (trainer.async_checkpoint), and deaths meanwhile."""

from pathlib import Path

import pytest

from crescendo.controller.loop.commits import list_manifests
from tests.integration.light_run import LightRun
from tests.integration.test_crash_points import assert_promises_kept

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

OVERLAPPED = ("trainer.async_checkpoint=true", "steps.1.rl.checkpoints.every_iterations=1")


def test_a_commit_comes_about_beside_the_rollout_and_before_the_next_batch(tmp_path: Path) -> None:
    """The write of the light trainer outlasts the rollout: what the run does first shows who waits for whom."""
    run = LightRun.prepare(tmp_path, *OVERLAPPED)
    marker = tmp_path / "rolled"
    assert run.live(f"rollout.parked:2:{marker}") == -9
    assert [manifest.iteration for manifest in list_manifests(run.folder)] == [0], "iteration 1 was being written"
    marker = tmp_path / "recorded"
    assert run.live(f"train.recorded:2:{marker}") == -9
    manifests = list_manifests(run.folder)
    assert manifests[-1].iteration == 2, "a batch is recorded when the commit before it is in place"
    assert manifests[-1].state["iteration"] == 2
    assert run.live() == 0, run.last_words()
    assert_promises_kept(run)


@pytest.mark.parametrize(
    "deaths",
    [
        ("rollout.begun:2", "engine.stepped:9", "trainer.saving:2", "commit.saved:2"),
        ("commit.renamed:3", "commit.rolled:2", "rollout.begun:2", "prune.unlisted:1"),
    ],
    ids=["before", "after"],
)
def test_a_run_killed_while_a_checkpoint_is_written_beside_it_loses_nothing(
    deaths: tuple[str, ...], tmp_path: Path
) -> None:
    run = LightRun.prepare(tmp_path, *OVERLAPPED)
    for number, death in enumerate(deaths):
        assert run.live(f"{death}:{tmp_path / f'died-{number}'}") == -9, f"{death} was never reached"
    assert run.live() == 0, run.last_words()
    assert_promises_kept(run)
