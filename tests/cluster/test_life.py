"""An RLJob's whole life on a real API server: it runs and completes, fails for each reason, is suspended in each phase.

Pods are fake, so the test says what KubeRay would say of its RayJob, and a stub answers for the run's controller.
"""

from collections.abc import Callable

import pytest

from tests.cluster.controller_stub import StubController
from tests.cluster.jobs import JobView, quickstart
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.operator_process import Operator

pytestmark = pytest.mark.timeout(600)
Eventually = Callable[..., None]
QUEUE = {"name": "training"}


def running(job: JobView, eventually: Eventually) -> JobView:
    eventually(f"{job.name} has an attempt", lambda: job.children("rayjob") == [f"{job.name}-1"], 60)
    job.kuberay_says(1, jobDeploymentStatus="Running", jobStatus="RUNNING")
    eventually(f"{job.name} runs", lambda: job.phase == "Running", 60)
    return job


def failed(job: JobView, eventually: Eventually, message: str) -> None:
    eventually(f"{job.name} has an attempt", lambda: job.children("rayjob") == [f"{job.name}-1"], 60)
    job.kuberay_says(1, jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", message=message)


def reasons(plane: ControlPlane, job: JobView) -> set[str]:
    """Of its events."""
    selector = f"regarding.name={job.name}"
    found = plane.get("events.v1.events.k8s.io", "-n", job.namespace, "--field-selector", selector)
    return {event["reason"] for event in found["items"]}


def test_a_job_runs_is_promoted_completes_and_goes(
    control_plane: ControlPlane,
    operator_with_runs: Operator,
    controller: StubController,
    create: Callable[..., JobView],
    eventually: Eventually,
) -> None:
    job = create("math")
    controller.run.status.committed_iteration = 2
    running(job, eventually)
    status = job.status()
    assert status["progress"]["summary"] == "3/10"
    assert status["progress"]["metrics"] == [{"name": "length", "value": "100"}, {"name": "reward", "value": "0.5"}]
    assert job.condition("Checkpointed") == "True"
    shown = control_plane.kubectl("get", "rljob", "math", "-n", job.namespace).splitlines()[1].split()
    assert shown[1:6] == ["Running", "context-32", "3/10", "0.5", "100"]
    job.patch(promoteTo="context-64")
    eventually("it is promoted", lambda: job.status().get("promotedTo") == "context-64")
    assert controller.run.verbs == ["promote context-64"]

    job.kuberay_says(1, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    eventually("it is complete", lambda: job.condition("Complete") == "True")
    assert job.phase == "Succeeded"
    assert job.condition("Running") == "False"
    assert {"AttemptCreated", "Running", "Succeeded"} <= reasons(control_plane, job)
    assert job.children("rayjob") == ["math-1"]
    job.patch(ttlSecondsAfterFinished=1)
    eventually("it is gone", lambda: "math" not in control_plane.kubectl("get", "rljob", "-n", job.namespace))


def test_each_way_to_fail_has_its_reason(
    control_plane: ControlPlane, operator_with_runs: Operator, create: Callable[..., JobView], eventually: Eventually
) -> None:
    codes = {"InvalidRun": 2, "EnvironmentProblem": 3, "Stopped": 130}
    jobs = {reason: create(f"code-{code}") for reason, code in codes.items()}
    jobs["BackoffLimitExceeded"] = create("again", backoffLimit=0)
    jobs["DeadlineExceeded"] = create("long", activeDeadlineSeconds=1)
    late = create("late", preRunningDeadlineSeconds=1, backoffLimit=0)
    for reason, code in codes.items():
        failed(jobs[reason], eventually, f"the command ended with exit code {code}")
    failed(jobs["BackoffLimitExceeded"], eventually, "the command ended with exit code 1")
    eventually("an attempt", lambda: jobs["DeadlineExceeded"].children("rayjob") == ["long-1"], 60)
    jobs["DeadlineExceeded"].kuberay_says(1, jobDeploymentStatus="Running", jobStatus="RUNNING")
    for reason, job in jobs.items():
        eventually(f"{job.name} fails", lambda job=job: job.condition("Failed") == "True", 60)
        assert job.status()["reason"] == reason
        assert job.condition("Running") in ("", "False")
        assert reason in reasons(control_plane, job)
    eventually("late fails", lambda: late.condition("Failed") == "True", 60)
    assert "PreRunningDeadlineExceeded" in late.status()["message"]
    for job in (late, jobs["DeadlineExceeded"]):
        eventually(f"{job.name} gives its devices back", lambda job=job: job.children("rayjob") == [], 60)


def test_a_failed_attempt_is_followed_by_another_from_the_same_volume(
    control_plane: ControlPlane, operator_with_runs: Operator, create: Callable[..., JobView], eventually: Eventually
) -> None:
    job = create("math")
    failed(job, eventually, "the command ended with exit code 1")
    eventually("it waits", lambda: job.phase == "Restarting")
    eventually("the second attempt", lambda: job.children("rayjob") == ["math-2"], 60)
    assert job.status()["failures"] == job.status()["restarts"] == 1
    assert "AttemptFailed" in reasons(control_plane, job)
    volume = control_plane.get("pvc", "math-run", "-n", job.namespace)["metadata"]["annotations"]
    assert volume["rl.crescendo.dev/storage-id"] == job.body()["metadata"]["uid"]


def test_a_job_is_suspended_and_resumed_whatever_it_is_doing(
    control_plane: ControlPlane,
    operator_with_runs: Operator,
    controller: StubController,
    create: Callable[..., JobView],
    eventually: Eventually,
) -> None:
    new = create("new", suspend=True)
    queued, restarting = create("queued", queue=QUEUE), create("restarting")
    eventually("it is queued", lambda: queued.children("rayjob") == ["queued-1"], 60)
    label = control_plane.get("rayjob", "queued-1", "-n", queued.namespace)["metadata"]["labels"]
    assert label["kueue.x-k8s.io/queue-name"] == "training"
    control_plane.kubectl(
        "patch", "rayjob", "queued-1", "-n", queued.namespace, "--type=merge", "-p", '{"spec":{"suspend":true}}'
    )
    eventually("it waits for quota", lambda: queued.phase == "Queued")
    failed(restarting, eventually, "the command ended with exit code 1")
    eventually("it waits for its next attempt", lambda: restarting.phase == "Restarting")
    active = running(create("running"), eventually)
    jobs = (new, queued, restarting, active)
    for job in jobs[1:]:
        job.patch(suspend=True)
    for job in jobs:
        eventually(f"{job.name} is suspended", lambda job=job: job.phase == "Suspended", 60)
        assert job.children("rayjob") == []
    assert set(controller.run.verbs) == {"stop commit=True"}
    for job in jobs:
        job.patch(suspend=False)
    for job, number in zip(jobs, (1, 2, 2, 2), strict=True):
        expected = [f"{job.name}-{number}"]
        eventually(f"{job.name} goes on", lambda job=job, expected=expected: job.children("rayjob") == expected, 90)
    assert [job.status().get("failures", 0) for job in jobs] == [0, 0, 1, 0]


def test_a_suspension_that_has_begun_is_completed_even_when_it_is_taken_back(
    operator_with_runs: Operator, controller: StubController, create: Callable[..., JobView], eventually: Eventually
) -> None:
    job = running(create("math"), eventually)
    controller.run.commits = False
    job.patch(suspend=True)
    eventually("it is asked to commit", lambda: controller.run.verbs != [])
    job.patch(suspend=False)
    eventually("it is asked again", lambda: len(controller.run.verbs) > 2)
    assert job.phase == "Suspending"
    assert job.children("rayjob") == ["math-1"]
    controller.run.status.phase = "stopped"
    eventually("the second attempt", lambda: job.children("rayjob") == ["math-2"], 60)
    assert job.status().get("failures", 0) == 0


def test_a_suspension_without_a_commit_ends_at_its_deadline(
    control_plane: ControlPlane,
    operator_with_runs: Operator,
    controller: StubController,
    create: Callable[..., JobView],
    eventually: Eventually,
) -> None:
    job = running(create("math", suspendDeadlineSeconds=2), eventually)
    controller.run.commits = False
    job.patch(suspend=True)
    eventually("it is suspended", lambda: job.phase == "Suspended")
    assert "SuspendDeadlineExceeded" in reasons(control_plane, job)


def test_a_name_is_used_again_at_once(
    control_plane: ControlPlane, operator_with_runs: Operator, create: Callable[..., JobView], eventually: Eventually
) -> None:
    job = create("math", storage={"retention": "Delete"})
    eventually("the first runs", lambda: job.condition("ClusterReady") == "True", 90)
    first = job.body()["metadata"]["uid"]
    control_plane.kubectl("delete", "rljob", "math", "-n", job.namespace)
    control_plane.apply(quickstart("math", job.namespace, storage={"retention": "Delete"}))
    second = job.body()["metadata"]["uid"]

    def owned_by_the_second() -> bool:
        found = control_plane.get("rayjobs,pvc", "-n", job.namespace)["items"]
        owners = {one["metadata"]["ownerReferences"][0]["uid"] for one in found if one["kind"] == "RayJob"}
        ids = {(one["metadata"].get("annotations") or {}).get("rl.crescendo.dev/storage-id") for one in found}
        return owners == {second} and first not in ids and second in ids

    eventually("the second has volumes and an attempt of its own", owned_by_the_second, 90)
    assert job.status()["phase"] in ("Pending", "Starting")


def test_a_job_waits_for_the_buffer_of_the_last_one_of_its_name(
    control_plane: ControlPlane, operator_with_runs: Operator, create: Callable[..., JobView], eventually: Eventually
) -> None:
    job = create("math")
    first = job.body()["metadata"]["uid"]
    secret = ("secret", "math-buffer", "-n", job.namespace)
    eventually("the first has a buffer", lambda: "math-buffer" in job.children("statefulset"), 90)
    earlier = control_plane.get(*secret)
    hold = ("patch", *secret, "--type=merge", "-p")
    control_plane.kubectl(*hold, '{"metadata": {"finalizers": ["tests.crescendo.dev/held"]}}')
    control_plane.kubectl("delete", "rljob", "math", "-n", job.namespace)
    again = quickstart("math", job.namespace)
    again["metadata"]["annotations"] = {"rl.crescendo.dev/adopt-storage": first}
    control_plane.apply(again)

    waits = "Secret math-buffer goes with an earlier job of this name"
    eventually("the second waits for the Secret", lambda: job.status().get("message") == waits, 90)
    assert (job.phase, job.status()["reason"], job.children("rayjob")) == ("Pending", "EarlierJobLeaving", [])
    control_plane.kubectl(*hold, '{"metadata": {"finalizers": null}}')
    eventually("the second has an attempt", lambda: job.children("rayjob") == ["math-1"], 60)
    owner = job.body()["metadata"]["uid"]
    for kind, name in (("secret", "math-buffer"), ("statefulset", "math-buffer"), ("rayjob", "math-1")):
        about = control_plane.get(kind, name, "-n", job.namespace)["metadata"]
        assert [one["uid"] for one in about["ownerReferences"]] == [owner]
    assert control_plane.get(*secret)["data"]["password"] != earlier["data"]["password"]


def test_a_buffer_whose_password_somebody_deleted_serves_the_next_attempt_with_a_new_one(
    control_plane: ControlPlane, operator_with_runs: Operator, create: Callable[..., JobView], eventually: Eventually
) -> None:
    job = create("math")
    eventually("the first has its pods", lambda: job.condition("ClusterReady") == "True", 90)
    server = ("pod", "math-buffer-0", "-n", job.namespace)
    first = control_plane.get(*server)["metadata"]["uid"]
    control_plane.kubectl("delete", "secret", "math-buffer", "-n", job.namespace)
    control_plane.kubectl("delete", "rayjob", "math-1", "-n", job.namespace)
    eventually("the second attempt", lambda: job.children("rayjob") == ["math-2"], 90)

    def replaced() -> bool:
        found = job.children("pod")
        return "math-buffer-0" in found and control_plane.get(*server)["metadata"]["uid"] != first

    eventually("a server that reads the new password", replaced, 90)
    assert "math-buffer" in job.children("secret")


def test_a_claim_of_somebody_else_is_left_alone(
    control_plane: ControlPlane,
    operator_with_runs: Operator,
    create: Callable[..., JobView],
    namespace: str,
    eventually: Eventually,
) -> None:
    claim = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "math-run", "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }  # fmt: skip
    control_plane.apply(claim)
    job = create("math")
    eventually("the job is refused", lambda: job.condition("Failed") == "True", 60)
    status = job.status()
    assert (status["reason"], "spec.storage.claimName" in status["message"]) == ("StorageMismatch", True)
    held = control_plane.get("pvc", "math-run", "-n", namespace)["metadata"]
    assert (held.get("labels"), held.get("ownerReferences")) == (None, None)


def test_volumes_go_with_a_job_that_says_so(
    control_plane: ControlPlane, operator_with_runs: Operator, create: Callable[..., JobView], eventually: Eventually
) -> None:
    job = create("math", storage={"retention": "Delete"})
    eventually("both volumes are there", lambda: len(job.children("pvc")) == 2, 90)
    control_plane.kubectl("delete", "rljob", "math", "-n", job.namespace)
    eventually("all are gone", lambda: job.children("pvc") == job.children("all") == [], 90)
