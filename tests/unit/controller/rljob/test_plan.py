"""The operator's decisions: each path of an RLJob's life, and that a crash after any write changes nothing."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crescendo.controller.operator.plan import plan
from crescendo.controller.operator.resource import BufferServer
from tests.unit.controller.rljob.world import REPORT, Crash, World


def started(**spec: object) -> World:
    world = World(spec={"run": {}, **spec})
    world.reconcile()
    world.run()
    world.reconcile()
    return world


def test_a_job_is_created_runs_and_completes() -> None:
    world = World(spec={"run": {}})
    world.reconcile()
    assert world.created == ["math-1"]
    assert world.phase == "Starting"
    world.run()
    world.reconcile()
    assert (world.phase, world.condition("Running"), world.condition("Accepted")) == ("Running", "True", "True")
    assert world.status["progress"]["summary"] == "3/10"
    assert world.status["progress"]["reward"] == "0.5"
    world.kuberay(deployment_status="Complete", job_status="SUCCEEDED")
    world.reconcile()
    assert (world.phase, world.condition("Complete"), world.condition("Running")) == ("Succeeded", "True", "False")


def test_a_steady_job_writes_nothing() -> None:
    world = started()
    world.reconcile()
    world.now += timedelta(seconds=31)
    assert plan(world.observed()).status is None
    world.report = replace(REPORT, iteration=4)
    decided = plan(world.observed())
    assert decided.status is not None
    assert decided.status["progress"]["iteration"] == 4


def test_progress_is_written_at_most_every_thirty_seconds() -> None:
    world = started()
    world.report = replace(REPORT, iteration=4)
    world.now += timedelta(seconds=10)
    assert plan(world.observed()).status is None
    world.now += timedelta(seconds=20)
    assert plan(world.observed()).status is not None


def test_a_failed_attempt_is_tried_again_after_a_back_off() -> None:
    world = started()
    world.kuberay(deployment_status="Failed", job_status="FAILED", message="head died")
    world.reconcile()
    assert (world.phase, world.status["failures"], world.attempts) == ("Restarting", 1, {})
    world.now += timedelta(seconds=5)
    world.reconcile()
    assert world.created == ["math-1"]
    world.now += timedelta(seconds=6)
    world.reconcile()
    assert world.created == ["math-1", "math-2"]
    assert world.status["restarts"] == 1


def test_progress_forgives_earlier_failures() -> None:
    world = started(backoffLimit=1)
    for _ in range(4):
        world.kuberay(deployment_status="Failed", job_status="FAILED")
        world.reconcile()
        world.now += timedelta(seconds=20)
        world.reconcile()
        committed = (world.report or REPORT).committed_iteration + 1
        world.run(replace(REPORT, committed_iteration=committed, iteration=committed))
        world.now += timedelta(seconds=40)
        world.reconcile()
    assert world.phase == "Running"
    assert world.status["failures"] == 0


def test_attempts_without_progress_end_the_job() -> None:
    world = started(backoffLimit=2)
    for _ in range(3):
        world.kuberay(deployment_status="Failed", job_status="FAILED")
        world.settle(rounds=4)
    assert world.condition("Failed") == "True"
    assert world.status["reason"] == "BackoffLimitExceeded"
    assert world.created == ["math-1", "math-2", "math-3"]


@pytest.mark.parametrize(("code", "reason"), [(2, "InvalidRun"), (3, "EnvironmentProblem"), (130, "Stopped")])
def test_an_end_that_another_attempt_cannot_mend_is_final(code: int, reason: str) -> None:
    world = started()
    message = f"Job entrypoint command failed with exit code {code}, last available logs: ..."
    world.kuberay(deployment_status="Failed", job_status="FAILED", message=message)
    world.reconcile()
    assert (world.condition("Failed"), world.status["reason"]) == ("True", reason)


def test_a_rayjob_deleted_by_hand_counts_as_a_lost_attempt() -> None:
    world = started()
    world.attempts.clear()
    world.reconcile()
    assert (world.phase, world.status["reason"]) == ("Restarting", "AttemptLost")
    world.settle(rounds=2)
    assert world.created == ["math-1", "math-2"]


def test_suspension_commits_first_and_resumes_with_the_next_number() -> None:
    world = started()
    world.spec["suspend"] = True
    decided = world.reconcile()
    assert [call.verb for call in decided.calls] == ["stop"]
    assert (world.phase, world.status["reason"]) == ("Suspending", "Committing")
    assert world.attempts
    world.settle(rounds=2)
    assert (world.phase, world.attempts, world.condition("Suspended")) == ("Suspended", {}, "True")
    world.spec["suspend"] = False
    world.settle(rounds=2)
    assert world.created == ["math-1", "math-2"]
    assert world.status.get("failures", 0) == 0


def test_a_rayjob_that_is_slow_to_go_costs_one_number_only() -> None:
    world = started()
    world.spec["suspend"] = True
    going = dict(world.attempts)
    for _ in range(3):
        world.reconcile()
        world.attempts = dict(going)  # its deletion takes a while
    assert (world.phase, world.status["reason"]) == ("Suspending", "PodsEnding")
    world.attempts.clear()
    world.settle(rounds=2)
    world.spec["suspend"] = False
    world.settle(rounds=2)
    assert world.created == ["math-1", "math-2"]


def test_a_suspension_that_has_begun_ends_even_when_it_is_taken_back() -> None:
    world = started()
    world.spec["suspend"] = True
    world.reconcile()
    world.spec["suspend"] = False
    world.settle(rounds=2)
    assert "math-1" not in world.attempts
    world.settle(rounds=2)
    assert world.created == ["math-1", "math-2"]


def test_a_suspension_without_an_answer_ends_at_its_deadline() -> None:
    world = started(suspendDeadlineSeconds=60)
    world.spec["suspend"] = True
    world.report = None
    world.reconcile()
    assert world.attempts
    world.now += timedelta(seconds=61)
    decided = world.reconcile()
    assert [note.reason for note in decided.events] == ["SuspendDeadlineExceeded"]
    assert world.attempts == {}


@pytest.mark.parametrize("deployment", ["", "Initializing", "Waiting"])
def test_a_job_that_does_not_run_yet_is_suspended_at_once(deployment: str) -> None:
    world = World(spec={"run": {}, "suspend": False})
    world.reconcile()
    world.kuberay(deployment_status=deployment)
    world.spec["suspend"] = True
    world.settle(rounds=2)
    assert world.phase == "Suspended"


def suspended(**spec: object) -> World:
    world = started(**spec)
    world.spec["suspend"] = True
    world.settle(rounds=4)
    return world


def test_a_suspended_job_gives_its_buffer_back_and_waits_for_it_before_it_goes_on() -> None:
    world = suspended()
    assert (world.phase, world.buffer) == ("Suspended", BufferServer(0, False))
    world.spec["suspend"], world.buffer_comes_up = False, False
    world.settle(rounds=3, seconds=5)
    assert (world.status["reason"], world.buffer, world.created) == (
        "BufferStarting",
        BufferServer(1, False),
        ["math-1"],
    )
    assert world.writes.count("start buffer") == 1
    world.buffer = BufferServer(1, True)
    world.reconcile()
    assert world.created == ["math-1", "math-2"]
    assert "bufferTime" not in world.status


def test_a_buffer_that_does_not_come_back_counts_as_a_failure() -> None:
    world = suspended(preRunningDeadlineSeconds=60, backoffLimit=1)
    world.spec["suspend"], world.buffer_comes_up = False, False
    world.settle(rounds=4, seconds=20)
    assert (world.phase, world.status["reason"], world.created) == ("Restarting", "BufferNotReady", ["math-1"])
    world.settle(rounds=6, seconds=20)
    assert (world.condition("Failed"), world.status["reason"]) == ("True", "BackoffLimitExceeded")


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_a_finished_job_keeps_no_buffer_server(status: str) -> None:
    world = started(backoffLimit=0)
    world.kuberay(deployment_status="Complete", job_status=status)
    world.settle(rounds=2)
    assert world.buffer == BufferServer(0, False)
    before = list(world.writes)
    world.reconcile()
    assert world.writes == before


def test_kueue_holds_back_and_admits_without_a_new_attempt() -> None:
    world = started()
    world.kuberay(deployment_status="Suspended")
    world.reconcile()
    assert (world.phase, world.condition("Queued"), world.condition("Running")) == ("Queued", "True", "False")
    world.now += timedelta(hours=5)
    world.run()
    world.reconcile()
    assert (world.phase, world.condition("Queued"), world.created) == ("Running", "False", ["math-1"])


def test_an_attempt_that_never_runs_meets_its_deadline() -> None:
    world = World(spec={"run": {}, "preRunningDeadlineSeconds": 100}, pods_up=False)
    world.reconcile()
    world.now += timedelta(seconds=101)
    world.reconcile()
    assert (world.phase, world.status["reason"]) == ("Restarting", "PreRunningDeadlineExceeded")


def test_running_time_is_counted_over_attempts() -> None:
    world = started(activeDeadlineSeconds=100)
    world.now += timedelta(seconds=60)
    world.kuberay(deployment_status="Failed", job_status="FAILED")
    world.reconcile()
    assert world.status["runningSeconds"] == 60
    world.settle(rounds=2, seconds=11)
    world.run()
    world.reconcile()
    world.now += timedelta(seconds=39)
    world.reconcile()
    assert world.phase == "Running"
    world.now += timedelta(seconds=1)
    world.reconcile()
    assert (world.condition("Failed"), world.status["reason"]) == ("True", "DeadlineExceeded")
    assert world.attempts == {}


def test_a_run_that_cannot_be_is_refused_with_its_problems() -> None:
    world = World(spec={"run": {}}, problems=("steps is empty; a run has at least one step.",))
    world.reconcile()
    assert (world.condition("Accepted"), world.condition("Failed"), world.created) == ("False", "True", [])
    assert "steps is empty" in world.status["message"]


def test_a_volume_of_an_earlier_job_that_is_going_is_waited_for() -> None:
    world = World(spec={"run": {}}, leaving="math-run")
    world.reconcile()
    assert (world.phase, world.created) == ("Pending", [])
    world.leaving = ""
    world.reconcile()
    assert world.created == ["math-1"]


def test_certificates_that_are_not_issued_are_waited_for_and_looked_after_and_no_deadline_runs() -> None:
    world = World(spec={"run": {}}, uncertified="Certificate math-identity-worker is not issued: no issuer")
    for _ in range(3):
        decided = world.reconcile()
        world.now += timedelta(hours=1)
    assert decided.certify
    assert (world.phase, world.status["reason"], world.created) == ("Pending", "CertificateMissing", [])
    assert "no issuer" in world.status["message"]
    world.uncertified = ""
    world.reconcile()
    assert world.created == ["math-1"]
    world.kuberay(deployment_status="Failed", message="exit code 1")
    world.reconcile()
    world.now += timedelta(hours=1)
    world.uncertified = "another issuer"
    world.reconcile()
    world.reconcile()
    assert (world.phase, world.status["reason"], world.created) == ("Restarting", "CertificateMissing", ["math-1"])


def test_a_finished_job_goes_after_its_ttl() -> None:
    world = started(ttlSecondsAfterFinished=60)
    world.kuberay(deployment_status="Complete", job_status="SUCCEEDED")
    world.reconcile()
    world.now += timedelta(seconds=59)
    assert not plan(world.observed()).delete_job
    world.now += timedelta(seconds=1)
    assert plan(world.observed()).delete_job


EVENTS = st.sampled_from(["run", "fail", "lose", "suspend", "resume", "queue", "wait"])


@settings(max_examples=200, deadline=None)
@given(events=st.lists(st.tuples(EVENTS, st.integers(-1, 6)), max_size=12))
def test_a_crash_after_any_write_never_makes_a_second_child_and_the_job_still_ends(
    events: list[tuple[str, int]],
) -> None:
    world = World(spec={"run": {}, "backoffLimit": 100})
    for event, crash_after in events:
        happen(world, event)
        world.crash_after = crash_after
        for _ in range(3):
            try:
                world.reconcile()
            except Crash:
                world.crash_after = -1
            assert len(world.attempts) <= 1
            if all(name != "lose" for name, _ in events):
                assert len(set(world.created)) == len(world.created)
            world.now += timedelta(seconds=15)
    world.crash_after, world.spec["suspend"] = -1, False
    for _ in range(60):
        if world.attempts and world.condition("Complete") != "True":
            world.kuberay(deployment_status="Complete", job_status="SUCCEEDED", suspended="")
        world.settle(rounds=1, seconds=60)
        if world.condition("Complete") == "True":
            break
    assert world.condition("Complete") == "True"
    world.reconcile()
    assert world.buffer == BufferServer(0, False)
    before = list(world.writes)
    world.reconcile()
    assert world.writes == before


def happen(world: World, event: str) -> None:
    world.spec["suspend"] = {"suspend": True, "resume": False}.get(event, world.spec.get("suspend", False))
    if not world.attempts:
        return
    if event == "run":
        world.run()
    elif event == "fail":
        world.kuberay(deployment_status="Failed", job_status="FAILED")
    elif event == "queue":
        world.kuberay(deployment_status="Suspended")
    elif event == "lose":
        world.attempts.clear()
