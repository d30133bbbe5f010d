"""Quotas with the real Kueue: jobs wait, are admitted, pre-empted, moved and freed. Pods and their GPUs are fake."""

import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.conftest import cannot
from tests.cluster.controller_stub import StubController
from tests.cluster.jobs import JobView, quickstart, refusal, volumes
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.kube.kueue import Kueue, build
from tests.cluster.operator_process import Operator

pytestmark = pytest.mark.timeout(1800)  # with what it waits for its program to be built
Eventually = Callable[..., None]
Create = Callable[..., JobView]
API = "kueue.x-k8s.io/v1beta2"
QUEUE = "training"
GPU = "nvidia.com/gpu"
QUOTA = 2
SIZE = {
    "placement": {"mode": "Colocated", "nodes": QUOTA, "devicesPerNode": 1},
    "storage": {"accessMode": "ReadWriteMany"},
}


@pytest.fixture(scope="module")
def kueue(control_plane: ControlPlane) -> Iterator[Kueue]:
    """Kueue, with two priorities."""
    try:
        build()
    except (RuntimeError, subprocess.SubprocessError) as error:
        cannot(f"Kueue could not be built: {error}")
    found = Kueue(control_plane)
    try:
        found.start()
        control_plane.apply({"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "any"}})
        for name, value in (("usual", 100), ("urgent", 1000)):
            priority = {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value}
            control_plane.apply(priority)
        yield found
    finally:
        found.stop()


@pytest.fixture
def quota(
    control_plane: ControlPlane, kueue: Kueue, namespace: str, eventually: Eventually
) -> Iterator[Callable[[], int]]:
    """A queue with the devices of one job; how many of them are taken."""
    amounts = [
        {"name": name, "nominalQuota": amount}
        for name, amount in (("cpu", 1000), ("memory", "10Ti"), ("ephemeral-storage", "10Ti"), (GPU, QUOTA))
    ]
    control_plane.apply(
        {
            "apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": namespace},
            "spec": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "preemption": {"withinClusterQueue": "LowerPriority"},
                "resourceGroups": [
                    {
                        "coveredResources": [one["name"] for one in amounts],
                        "flavors": [{"name": "any", "resources": amounts}],
                    }
                ],
            },
        }
    )  # fmt: skip
    control_plane.apply(
        {
            "apiVersion": API, "kind": "LocalQueue", "metadata": {"name": QUEUE, "namespace": namespace},
            "spec": {"clusterQueue": namespace},
        }
    )  # fmt: skip

    def taken() -> int:
        (flavor,) = control_plane.get("clusterqueue", namespace)["status"]["flavorsReservation"]
        return next(int(one["total"]) for one in flavor["resources"] if one["name"] == GPU)

    yield taken
    control_plane.kubectl("delete", "rljob", "--all", "-n", namespace, "--timeout=60s")
    workloads = ("get", "workload", "-n", namespace, "-o", "name")
    eventually("Kueue has let go of everything", lambda: control_plane.kubectl(*workloads) == "")
    control_plane.kubectl("delete", "clusterqueue", namespace, "--wait=false")
    print(kueue.log[-2000:])


@pytest.fixture
def create(control_plane: ControlPlane, namespace: str) -> Create:
    def one(name: str, queue: str = QUEUE, priority: str = "usual", **spec: Any) -> JobView:
        volumes(control_plane, namespace, (name,))
        named = {"name": queue, "priorityClass": priority}
        control_plane.apply(quickstart(name, namespace, queue=named, **SIZE, **spec))
        return JobView(control_plane, name, namespace)

    return one


def admitted(job: JobView, attempt: int, eventually: Eventually) -> None:
    """Waits until KubeRay may start an attempt, and does."""
    eventually(f"{job.name} is admitted", lambda: (job.phase, job.status().get("attempt")) == ("Starting", attempt), 60)
    eventually(f"{job.name} has its pods", lambda: job.condition("ClusterReady") == "True", 90)
    assert job.status()["gpus"] == QUOTA


def running(job: JobView, attempt: int, eventually: Eventually) -> None:
    admitted(job, attempt, eventually)
    job.kuberay_says(attempt, jobDeploymentStatus="Running", jobStatus="RUNNING")
    eventually(f"{job.name} runs", lambda: job.phase == "Running", 60)


def queued(job: JobView, eventually: Eventually, because: str) -> None:
    eventually(f"{job.name} waits", lambda: job.phase == "Queued" and because in job.status().get("message", ""), 60)
    assert job.condition("Queued") == "True"
    assert job.status()["gpus"] == 0


def writers_of_suspend(plane: ControlPlane, job: JobView) -> set[tuple[str, str]]:
    """Who holds spec.suspend of a waiting job's first RayJob, and by which operation."""
    name = f"{job.name}-1"
    found = plane.get("rayjob", name, "-n", job.namespace, "--show-managed-fields")["metadata"]["managedFields"]
    held = [entry for entry in found if "f:suspend" in entry["fieldsV1"].get("f:spec", {})]
    return {(entry["manager"], entry["operation"]) for entry in held}


def test_jobs_beyond_the_quota_wait_and_each_way_to_end_lets_the_next_one_in(
    control_plane: ControlPlane,
    operator_with_runs: Operator,
    controller: StubController,
    quota: Callable[[], int],
    create: Create,
    eventually: Eventually,
) -> None:
    first = create("first")
    running(first, 1, eventually)
    for devices in (1, QUOTA):
        controller.run.status.stage_devices = devices
        eventually(f"it has {devices} devices", lambda devices=devices: first.status()["gpus"] == devices, 60)
        assert quota() == QUOTA
    assert first.phase == "Running"
    second = create("second", preRunningDeadlineSeconds=1, activeDeadlineSeconds=3600)
    queued(second, eventually, GPU)
    shown = control_plane.kubectl("get", "rljob", "second", "-n", second.namespace, "-o", "wide")
    assert all(word in shown for word in ("Queued", QUEUE, "WaitingForQuota")), shown
    assert second.children("raycluster") == []
    assert control_plane.get("rayjob", "second-1", "-n", second.namespace)["spec"]["suspend"] is True
    assert writers_of_suspend(control_plane, second) == set()  # Kueue's webhook, while the operator's apply passed it
    time.sleep(7)  # two resyncs and more, beyond its one second
    assert second.phase == "Queued"
    second.patch(preRunningDeadlineSeconds=1800)

    first.patch(suspend=True)
    eventually("the first is suspended", lambda: first.phase == "Suspended", 60)
    running(second, 1, eventually)
    first.patch(suspend=False)
    queued(first, eventually, GPU)
    second.kuberay_says(1, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    admitted(first, 2, eventually)
    assert second.phase == "Succeeded"
    control_plane.kubectl("delete", "rljob", "first", "-n", first.namespace)
    eventually("the quota is free", lambda: quota() == 0, 60)


def test_a_job_that_is_preempted_counts_nothing_and_comes_back(
    control_plane: ControlPlane,
    operator_with_runs: Operator,
    quota: Callable[[], int],
    create: Create,
    eventually: Eventually,
) -> None:
    usual = create("usual")
    running(usual, 1, eventually)
    urgent = create("urgent", priority="urgent")
    admitted(urgent, 1, eventually)
    queued(usual, eventually, GPU)
    assert writers_of_suspend(control_plane, usual) == {("kueue", "Update")}
    assert usual.condition("Running") == usual.condition("ClusterReady") == "False"
    events = control_plane.get("events.v1.events.k8s.io", "-n", usual.namespace)["items"]
    notes = {one["note"] for one in events if one["reason"] == "Evicted" and one["regarding"]["kind"] == "RLJob"}
    assert len(notes) == 1
    assert "goes on from its last commit" in notes.pop()
    control_plane.kubectl("delete", "rljob", "urgent", "-n", urgent.namespace)
    running(usual, 1, eventually)
    status = usual.status()
    assert (status.get("failures", 0), status["restarts"]) == (0, 0)
    assert "managedBy" not in control_plane.get("rayjob", "usual-1", "-n", usual.namespace)["spec"]


def test_a_queue_that_does_not_exist_is_told_and_the_job_moves_when_it_is_corrected(
    control_plane: ControlPlane,
    operator_with_runs: Operator,
    quota: Callable[[], int],
    create: Create,
    eventually: Eventually,
) -> None:
    job = create("lost", queue="trainig")
    assert "spec.queue.name" in refusal(control_plane, quickstart("b", job.namespace, queue={"name": "a" * 64}))
    queued(job, eventually, "LocalQueue trainig doesn't exist")
    status = job.status()
    assert status["reason"] == "Inadmissible"
    assert status["message"].startswith("spec.queue.name is 'trainig'")
    assert f"kubectl get localqueue -n {job.namespace}" in status["message"]
    assert QUEUE in control_plane.kubectl("get", "localqueue", "-n", job.namespace)
    job.patch(queue={"name": QUEUE, "priorityClass": "usual"})
    admitted(job, 2, eventually)
    assert job.status().get("failures", 0) == 0
    free = create("free")
    queued(free, eventually, GPU)
    free.patch(queue=None)
    admitted(free, 2, eventually)  # beside the other, which has the whole quota
    assert quota() == QUOTA
