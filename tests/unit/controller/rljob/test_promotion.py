"""Promotions: asked for once, acknowledged, asked for again when an attempt took one along, refused backwards."""

from dataclasses import replace

import pytest

from tests.unit.controller.rljob.test_plan import started
from tests.unit.controller.rljob.world import REPORT

STAGES = {"steps": [{}, {"rl": {"stages": [{"name": name} for name in ("4k", "8k", "16k", "24k")]}}]}


def test_a_promotion_is_asked_for_once() -> None:
    world = started(run=STAGES)
    world.spec["promoteTo"] = "16k"
    assert [call.stage for call in world.reconcile().calls] == ["16k"]
    assert world.reconcile().calls == ()


def test_a_promotion_whose_answer_was_lost_is_acknowledged_by_the_stage() -> None:
    world = started(run=STAGES)
    world.spec["promoteTo"] = "8k"
    assert world.reconcile().calls == ()
    assert world.status["promotedTo"] == "8k"


def test_a_promotion_that_an_attempt_took_to_its_grave_is_asked_for_again() -> None:
    world = started(run=STAGES)
    world.spec["promoteTo"] = "16k"
    world.reconcile()
    assert world.status["promotedTo"] == "16k"
    world.kuberay(deployment_status="Failed")
    world.settle(rounds=10)
    assert "promotedTo" not in world.status
    world.run()
    assert [call.stage for call in world.reconcile().calls] == ["16k"]


def test_a_promotion_that_was_reached_is_not_asked_for_again() -> None:
    world = started(run=STAGES)
    world.spec["promoteTo"] = "16k"
    world.reconcile()
    reached = replace(REPORT, stage="16k")
    world.run(reached)
    world.reconcile()
    world.kuberay(deployment_status="Failed")
    world.settle(rounds=10)
    assert world.status["promotedTo"] == "16k"
    world.run(reached)
    assert world.reconcile().calls == ()


def test_a_run_that_succeeded_was_promoted() -> None:
    world = started(run=STAGES)
    world.spec["promoteTo"] = "24k"
    world.kuberay(deployment_status="Complete", job_status="SUCCEEDED")
    world.reconcile()
    assert (world.phase, world.status["promotedTo"]) == ("Succeeded", "24k")


@pytest.mark.parametrize("stage", ["4k", "nowhere"])
def test_a_stage_that_does_not_follow_is_refused_once(stage: str) -> None:
    world = started(run=STAGES)
    world.spec["promoteTo"] = stage
    decided = world.reconcile()
    assert (decided.calls, [note.reason for note in decided.events]) == ((), ["PromotionRefused"])
    assert world.status["message"].endswith("later stages: 16k, 24k")
    again = world.reconcile()
    assert (again.calls, again.events, again.status) == ((), (), None)
