"""Engines that are added and taken away in the middle of a rollout phase; `crescendo scale` does the same."""

import asyncio
from pathlib import Path

import pytest

from crescendo.controller.chaos import audit, gather
from tests.integration.light_run import LightRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_a_joiner_serves_once_it_has_attested_and_a_leaver_loses_nothing(tmp_path: Path) -> None:
    run = LightRun.prepare(
        tmp_path, "rollout.max_concurrency=2", "rollout.flush_tokens=1000", "steps.1.rl.stages.0.gate.rollback=last",
        *(f"steps.1.rl.stages.{n}.prompts_per_iteration=8" for n in range(2)),
    )  # fmt: skip
    assert run.live(scale={1: 3, 3: 1}, step_s=0.02) == 0, run.last_words()
    joined = [event["facts"]["worker"] for event in run.events("engine.joined")]
    left = [event["facts"]["worker"] for event in run.events("engine.left")]
    assert sorted(joined) == sorted(left) == ["rollout-1", "rollout-2"]
    assert run.events("trajectory.given_back") == run.events("trajectory.lease_expired") == []

    evidence = asyncio.run(gather(run.folder))
    assert audit(evidence) == []
    makers = [{origin.worker_id for origin in origins} for origins in evidence.origins.values()]
    assert set().union(*makers) == {"rollout-0.0", "rollout-1.0", "rollout-2.0"}
    assert any(len(them) > 1 for them in makers), "nothing that a leaver had begun was continued by another"


def test_the_number_of_engines_outlives_the_controller(tmp_path: Path) -> None:
    run = LightRun.prepare(tmp_path)
    assert run.live(f"commit.renamed:3:{tmp_path / 'died'}", scale={1: 2}, step_s=0.01) == -9
    assert run.live(step_s=0.01) == 0, run.last_words()
    attested = {(row["epoch"], row["worker_id"]) for row in run.rows(run.folder.attestations)}
    assert attested >= {(1, "rollout-1.0"), (2, "rollout-1.0")}
    assert audit(asyncio.run(gather(run.folder))) == []
