"""Conditions, messages and events as the Kubernetes API's conventions want them, over whole lives of a job."""

import re
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.controller.rljob.test_plan import EVENTS, happen, started
from tests.unit.controller.rljob.world import World

REASON = re.compile(r"[A-Z][A-Za-z]+")


def conditions(world: World) -> dict[str, dict[str, Any]]:
    return {one["type"]: dict(one) for one in world.status.get("conditions", ())}


@settings(max_examples=100, deadline=None)
@given(events=st.lists(EVENTS, max_size=10))
def test_a_condition_keeps_its_time_until_it_turns_and_its_reason_is_a_word(events: list[str]) -> None:
    world = World(spec={"run": {}, "backoffLimit": 100, "queue": {"name": "gpus"}})
    before: dict[str, dict[str, Any]] = {}
    for event in events:
        happen(world, event)
        for _ in range(2):
            world.reconcile()
            found = conditions(world)
            for kind, one in found.items():
                assert REASON.fullmatch(one["reason"]), one
                assert one["observedGeneration"] == 1
                kept = one["lastTransitionTime"] == before.get(kind, {}).get("lastTransitionTime")
                assert kept == (one["status"] == before.get(kind, {}).get("status")), (one, before.get(kind))
            assert REASON.fullmatch(world.status["reason"])
            assert not (world.phase == "Suspended" and world.condition("Queued") == "True")
            before = found
            world.now += timedelta(seconds=15)


def test_an_edit_that_is_wrong_does_not_end_what_runs() -> None:
    world = started()
    world.problems = ("spec.podPatches: securityContext may not be set",)
    world.reconcile()
    assert (world.phase, world.condition("Accepted"), world.condition("Running")) == ("Running", "False", "True")
    assert "podPatches" in conditions(world)["Accepted"]["message"]
    world.kuberay(deployment_status="Failed", job_status="FAILED")
    world.settle(rounds=3)
    assert (world.phase, world.status["reason"], world.created) == ("Failed", "ValidationFailed", ["math-1"])


def test_what_went_wrong_is_told_until_the_next_attempt() -> None:
    world = started()
    world.kuberay(deployment_status="Failed", job_status="FAILED", message="head died")
    for _ in range(3):
        world.reconcile()
        assert (world.phase, world.status["reason"], world.status["message"]) == (
            "Restarting", "AttemptFailed", "head died",
        )  # fmt: skip
        world.now += timedelta(seconds=3)


def test_a_commit_that_did_not_come_is_told_once() -> None:
    world = started(suspendDeadlineSeconds=60)
    world.spec["suspend"], world.report = True, None
    world.reconcile()
    world.now += timedelta(seconds=61)
    going, told = dict(world.attempts), []
    for _ in range(3):
        told += [note.reason for note in world.reconcile().events]
        world.attempts = dict(going)  # its deletion takes a while
        world.now += timedelta(seconds=61)
    assert told == ["SuspendDeadlineExceeded"]


def test_a_start_that_takes_too_long_says_where_to_look() -> None:
    world = World(spec={"run": {}, "preRunningDeadlineSeconds": 100}, pods_up=False)
    world.reconcile()
    world.kuberay(deployment_status="Initializing")
    world.reconcile()
    assert world.status["reason"] == "PodsStarting"
    world.now += timedelta(seconds=101)
    world.reconcile()
    assert "0 of 2 pods ready" in world.status["message"]
    assert "spec.preRunningDeadlineSeconds" in world.status["message"]


def test_what_keeps_its_pods_is_told_by_status_condition_and_one_event() -> None:
    world = World(spec={"run": {}, "preRunningDeadlineSeconds": 300}, pods_up=False)
    world.reconcile()
    world.kuberay(deployment_status="Initializing")
    world.obstacle = "ray-1-worker: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu"
    notes = [note for _ in range(3) for note in world.reconcile().events]
    assert [(note.kind, note.reason) for note in notes] == [("Warning", "PodsBlocked")]
    assert (world.phase, world.status["reason"], world.status["message"]) == ("Starting", "PodsBlocked", world.obstacle)
    assert conditions(world)["ClusterReady"]["message"] == f"0 of 2 pods ready; {world.obstacle}"
    world.obstacle, world.pods_up = "", True
    world.reconcile()
    assert world.status["reason"] == "PodsStarting"
    world.obstacle, world.pods_up = "ray-1-head: 0/4 nodes are available", False
    world.now += timedelta(seconds=301)
    world.reconcile()
    assert world.status["reason"] == "PreRunningDeadlineExceeded"
    assert world.obstacle in world.status["message"]
