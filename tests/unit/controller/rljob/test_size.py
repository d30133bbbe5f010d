"""Pods by stage: what an attempt begins with, what the controller asks for, and what it is not given."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from crescendo.controller.operator.children.rayjob import ray_job
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.plan import plan
from crescendo.controller.operator.progress import sanitized
from crescendo.controller.operator.resource import Job
from crescendo.controller.operator.size import full_size, wanted_size
from crescendo.proto.v1 import controller_pb2
from tests.unit.controller.rljob.world import REPORT, START, Crash, World

DEEPSCALER = Path(__file__).parents[4] / "recipes" / "deepscaler" / "rljob.yaml"
PLACEMENT = {"mode": "Colocated", "nodes": 4, "devicesPerNode": 8}


def job(placement: dict[str, Any], **spec: Any) -> Job:
    return Job("math", "team", "uid-1", 1, START, False, {"run": {}, "placement": placement, **spec}, {})


def started(**spec: Any) -> World:
    world = World(spec={"run": {}, "placement": PLACEMENT, **spec}, replicas={"worker": 1})
    world.reconcile()
    world.run(replace(REPORT, stage_devices=8))
    world.reconcile()
    return world


def test_a_stage_that_wants_more_devices_gets_pods_once() -> None:
    world = started()
    assert not [write for write in world.writes if write.startswith("scale")]
    world.report = replace(REPORT, stage="16k", stage_devices=32)
    decided = world.reconcile()
    assert decided.scale == (("worker", 4),)
    assert [note.message for note in decided.events] == ["pods for stage 16k: worker 1 -> 4"]
    assert plan(world.observed()).scale == ()
    assert world.status["gpus"] == 8  # as observed before
    world.reconcile()
    assert world.status["gpus"] == 32


def test_a_rollback_to_a_smaller_stage_gives_pods_back() -> None:
    world = started()
    world.replicas = {"worker": 4}
    world.report = replace(REPORT, stage_devices=9)
    assert world.reconcile().scale == (("worker", 2),)


def test_a_controller_without_counts_is_left_alone() -> None:
    world = started()
    world.report = REPORT
    assert world.reconcile().scale == ()


def test_a_queued_job_follows_its_stages_within_the_size_that_kueue_has_admitted() -> None:
    world = started(queue={"name": "gpus"})
    world.replicas = {"worker": 4}
    assert world.reconcile().scale == (("worker", 1),)
    world.report = replace(REPORT, stage_devices=320)
    assert world.reconcile().scale == (("worker", 4),)


def test_a_scale_that_a_crash_cut_short_is_done_by_the_next_operator() -> None:
    world = started()
    world.report = replace(REPORT, stage_devices=32)
    world.crash_after = 0
    with pytest.raises(Crash):
        world.reconcile()
    assert world.replicas == {"worker": 1}
    world.crash_after = -1
    world.reconcile()
    assert world.replicas == {"worker": 4}


@given(
    asked=st.integers(0, 2**53), own=st.integers(0, 2**53), nodes=st.integers(1, 64), rollout=st.integers(1, 64),
    per_node=st.integers(0, 8), apart=st.booleans(),
)  # fmt: skip
def test_a_group_never_grows_beyond_its_placement(
    asked: int, own: int, nodes: int, rollout: int, per_node: int, apart: bool
) -> None:
    placement: dict[str, Any] = {"mode": "Colocated", "nodes": nodes, "devicesPerNode": per_node}
    if apart:
        placement |= {"mode": "Disaggregated", "rolloutNodes": rollout}
    found = job(placement)
    wanted = wanted_size(found, replace(REPORT, stage_devices=asked, stage_rollout_devices=own))
    assert all(1 <= pods <= full_size(found)[group] for group, pods in wanted.items())


def test_what_the_controller_says_is_cut_to_size() -> None:
    status = controller_pb2.RunStatus(stage_devices=-5, stage_rollout_devices=3)
    report = sanitized(status)
    assert (report.stage_devices, report.stage_rollout_devices) == (0, 3)


def test_an_attempt_begins_with_the_pods_of_the_stage_that_the_job_was_last_seen_in() -> None:
    body = yaml.safe_load(DEEPSCALER.read_text())

    def replicas(status: dict[str, Any], **spec: Any) -> int:
        found = Job("math", "team", "uid-1", 1, START, False, {**body["spec"], **spec}, status)
        (group,) = ray_job(found, 1, Options())["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        return int(group["replicas"])

    assert replicas({}) == 1
    assert replicas({"progress": {"stage": "context-16k"}}) == 4
    assert replicas({}, queue={"name": "gpus"}) == 4
