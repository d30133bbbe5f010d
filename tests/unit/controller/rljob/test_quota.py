"""Jobs with a queue: what Kueue's Workload says becomes the job's status, and waiting costs nothing."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from crescendo.common.config import read_mapping
from crescendo.controller.operator.children import ray_job
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.plan import plan
from crescendo.controller.operator.render import to_rljob
from crescendo.controller.operator.resource import Attempt, Hold, Job
from tests.unit.controller.rljob.world import START, World

QUICKSTART = Path(__file__).parents[4] / "recipes/quickstart/recipe.yaml"
SPEC = to_rljob(read_mapping(QUICKSTART), image="any", name="math", namespace="team")["spec"]
QUEUE = {"name": "training"}
LACKING = "couldn't assign flavors to pod set worker: insufficient unused quota for nvidia.com/gpu, 1 more needed"


def queued(**spec: Any) -> World:
    world = World(spec={"run": {}, "queue": QUEUE, **spec}, pods_up=False, hold=Hold(message=LACKING))
    world.reconcile()
    world.kuberay(suspended="yes")
    world.reconcile()
    return world


def test_a_queued_job_says_what_it_waits_for_and_holds_nothing() -> None:
    world = queued(placement={"nodes": 2, "devicesPerNode": 8})
    assert (world.phase, world.status["reason"], world.status["message"]) == ("Queued", "WaitingForQuota", LACKING)
    assert world.condition("Queued") == "True"
    assert world.status["gpus"] == 0
    assert "readySummary" not in world.status
    assert plan(world.observed()).status is None


def test_time_in_the_queue_counts_towards_no_deadline() -> None:
    world = queued(preRunningDeadlineSeconds=60, activeDeadlineSeconds=60)
    world.settle(rounds=5, seconds=3600)
    assert world.phase == "Queued"
    world.kuberay(suspended="", deployment_status="Initializing")
    world.reconcile()
    assert world.phase == "Starting"
    world.now += timedelta(seconds=59)
    world.reconcile()
    assert world.phase == "Starting"
    world.now += timedelta(seconds=2)
    world.reconcile()
    assert world.status["reason"] == "PreRunningDeadlineExceeded"


@pytest.mark.parametrize("ran", [True, False])
def test_an_evicted_job_is_neither_failed_nor_restarted(ran: bool) -> None:
    world = queued()
    world.pods_up = True
    world.kuberay(suspended="", deployment_status="Running")
    if ran:
        world.run()
    world.reconcile()
    assert world.condition("ClusterReady") == "True"
    world.kuberay(suspended="yes", deployment_status="Suspending")
    world.hold = Hold(message="Preempted to accommodate a workload")
    decided = world.reconcile()
    said = [(note.reason, note.message) for note in decided.events]
    assert said == ([("Evicted", f"{world.hold.message}; the run goes on from its last commit")] if ran else [])
    assert world.condition("Running") == world.condition("ClusterReady") == "False"
    assert world.phase == "Queued"
    assert (world.status.get("failures", 0), world.status["restarts"], world.status["attempt"]) == (0, 0, 1)
    assert plan(world.observed()).events == ()


@pytest.mark.parametrize(
    ("wanted", "queue"),
    [({"name": "other"}, "other"), ({**QUEUE, "priorityClass": "urgent"}, "training urgent"), ({}, "")],
)
def test_a_job_that_waits_is_moved_to_the_queue_that_it_is_told(wanted: dict[str, str], queue: str) -> None:
    world = queued()
    world.spec = {**world.spec, "queue": wanted}
    assert world.reconcile().delete == ("math-1",)
    assert (world.status["reason"], world.status["message"]) == (
        "QueueChanged",
        f"to {queue}" if queue else "out of any queue",
    )
    world.reconcile()
    assert {name: one.queue for name, one in world.attempts.items()} == {"math-2": queue}
    assert world.status.get("failures", 0) == 0


def test_a_job_that_ran_leaves_its_queue_when_it_is_evicted() -> None:
    world = queued()
    world.kuberay(suspended="")
    world.run()
    world.spec = {**world.spec, "queue": {"name": "other"}}
    assert world.reconcile().delete == ()
    world.kuberay(suspended="yes", deployment_status="Suspending")
    decided = world.reconcile()
    assert decided.delete == ("math-1",)
    assert [note.reason for note in decided.events] == ["Evicted"]
    assert world.condition("Running") == "False"
    world.reconcile()
    assert list(world.attempts) == ["math-2"]


@pytest.mark.parametrize("queue", [QUEUE, {}])
def test_a_label_that_kueue_adds_moves_nobody(queue: dict[str, str]) -> None:
    job = Job("math", "team", "uid-1", 1, START, False, {**SPEC, "queue": queue}, {})
    body = ray_job(job, 1, Options())
    body["metadata"]["uid"] = "2"
    body["metadata"]["labels"] |= {"kueue.x-k8s.io/queue-name": "default", "kueue.x-k8s.io/priority-class": "low"}
    assert Attempt.from_body(body).queue == job.queue


def workload(**conditions: tuple[str, str, str]) -> dict[str, Any]:
    found = [
        {"type": kind, "status": status, "reason": reason, "message": message}
        for kind, (status, reason, message) in conditions.items()
    ]
    return {"status": {"conditions": found}}


def hold(body: dict[str, Any] | None, **queue: str) -> Hold:
    job = Job("math", "team", "uid-1", 1, START, False, {"queue": {**QUEUE, **queue}}, {})
    return Hold.from_workload(body, job)


def test_what_kueue_says_is_passed_on() -> None:
    assert hold(workload(QuotaReserved=("False", "Pending", LACKING))) == Hold("WaitingForQuota", LACKING)
    assert hold({}).message == "Kueue has not decided yet"
    evicted = workload(QuotaReserved=("True", "QuotaReserved", "x"), Evicted=("True", "Preempted", "Preempted to"))
    assert hold(evicted).message == "Preempted to"
    # An eviction of long ago is no news any more.
    waits = workload(QuotaReserved=("False", "Pending", LACKING), Evicted=("True", "Preempted", "Preempted to"))
    assert hold(waits).message == LACKING


def test_a_queue_that_is_none_is_told_with_field_and_fix() -> None:
    found = hold(workload(QuotaReserved=("False", "Inadmissible", "LocalQueue training doesn't exist")))
    assert found.reason == "Inadmissible"
    assert found.message == (
        "spec.queue.name is 'training': LocalQueue training doesn't exist; "
        "name an active LocalQueue of namespace team: `kubectl get localqueue -n team`"
    )


def test_a_rayjob_that_kueue_does_not_know_is_told_with_what_to_look_at() -> None:
    assert "does it run" in hold(None).message
    assert "WorkloadPriorityClass urgent (spec.queue.priorityClass)" in hold(None, priorityClass="urgent").message
