"""What a run says of itself, and KubeRay of it, fits its status and events: the API server refuses neither."""

import json
from datetime import timedelta
from typing import Any

import jsonschema
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crescendo.controller.operator.crd import definition
from crescendo.controller.operator.events import event_of
from crescendo.controller.operator.progress import sanitized
from crescendo.proto.v1 import controller_pb2 as pb
from tests.unit.controller.rljob.world import START, World

(VERSION,) = definition()["spec"]["versions"]
STATUS = VERSION["schema"]["openAPIV3Schema"]["properties"]["status"]
EVENT_BYTES = 1024  # of the API server, by which a longer one is invalid
TEXTS = st.text(max_size=80) | st.sampled_from(["\x1b[31m", "\u00e9" * 3000, "x" * 3000])
COUNTS = st.integers(-(2**63), 2**63 - 1)
REPORTS = st.builds(
    pb.RunStatus,
    phase=TEXTS, stage=TEXTS, lease_state=TEXTS, iteration=COUNTS, max_iterations=COUNTS, committed_iteration=COUNTS,
    weight_version=COUNTS, eta_seconds=st.floats(),
    metrics=st.dictionaries(TEXTS, st.floats(), max_size=70),
)  # fmt: skip


def running() -> World:
    world = World(spec={"run": {}})
    world.reconcile()
    world.run()
    return world


def check(world: World) -> None:
    """Decides once, and holds status and events against what the API server takes."""
    job = world.observed().job
    notes = [event_of(job, note, START)["note"] for note in world.reconcile().events]
    jsonschema.validate(world.status, STATUS)
    shown = json.dumps([world.status, notes], ensure_ascii=False)
    assert all(mark.isprintable() for mark in shown), shown
    assert all(len(note.encode()) <= EVENT_BYTES for note in notes)


@settings(max_examples=60, deadline=None)
@example(pb.RunStatus(eta_seconds=1e300, iteration=2**62, max_iterations=2**62))
@given(status=REPORTS)
def test_whatever_a_run_says_fits(status: pb.RunStatus) -> None:
    world = running()
    world.report = sanitized(status)
    check(world)
    world.now += timedelta(minutes=1)
    check(world)


@settings(max_examples=60, deadline=None)
@given(message=TEXTS, code=st.sampled_from(["", "exit code 2\nerror: ", "exit code 1\n"]))
def test_whatever_ends_an_attempt_fits(message: str, code: str) -> None:
    world = running()
    world.kuberay(deployment_status="Failed", job_status="FAILED", message=code + message)
    check(world)


def test_a_clock_that_goes_back_counts_no_time() -> None:
    world = running()
    world.reconcile()
    world.now -= timedelta(minutes=5)
    world.kuberay(deployment_status="Failed", job_status="FAILED")
    check(world)


def test_deadlines_that_no_clock_reaches_are_refused() -> None:
    spec: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds", "suspendDeadlineSeconds"):
        world = World(spec={"run": {}, field: spec[field]["maximum"]})
        world.reconcile()
        world.run()
        world.reconcile()
        world.spec["suspend"] = True
        world.reconcile()
        assert world.phase == "Suspending"
