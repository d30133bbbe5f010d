"""The operator as a process against a real API server, controller manager, KubeRay and fake nodes."""

import time
from collections.abc import Callable

import pytest

from tests.cluster.jobs import JobView, quickstart, volumes
from tests.cluster.kube.control_plane import ControlPlane, KubectlError
from tests.cluster.operator_process import Operator

pytestmark = pytest.mark.timeout(900)
Eventually = Callable[..., None]


def test_a_job_becomes_a_rayjob_whose_pods_pass_pod_security(
    control_plane: ControlPlane, operator: Operator, job: JobView, eventually: Eventually
) -> None:
    eventually("the cluster is ready", lambda: job.condition("ClusterReady") == "True", 120)
    assert job.children("rayjob") == ["math-1"]
    assert set(job.children("networkpolicy")) == {"math-deny", "math-ray", "math-buffer"}
    assert set(job.children("secret")) >= {"math-identity-controller", "math-identity-worker"}
    status = job.status()
    assert status["phase"] == "Starting"
    assert status["observedGeneration"] == 1
    told = control_plane.kubectl("describe", "rljob", "math", "-n", job.namespace)
    assert "AttemptCreated" in told
    pods = control_plane.kubectl("describe", "pod", "-n", job.namespace, "-l", "rl.crescendo.dev/job=math")
    assert "ray-head" in pods
    assert "ray-worker" in pods


def test_deleting_a_job_leaves_its_volume_only(
    control_plane: ControlPlane, operator: Operator, job: JobView, eventually: Eventually
) -> None:
    eventually("the pods are there", lambda: len(job.children("pod")) >= 2, 120)
    control_plane.kubectl("delete", "rljob", "math", "-n", job.namespace, "--wait=false")
    for kind in ("rayjob", "raycluster", "pod", "statefulset", "service", "configmap", "networkpolicy", "secret"):
        eventually(f"every {kind} is gone", lambda kind=kind: job.children(kind) == [], 120)
    assert job.children("pvc") != []


def test_a_retained_volume_of_an_earlier_job_is_not_overwritten(
    control_plane: ControlPlane, operator: Operator, job: JobView, eventually: Eventually
) -> None:
    eventually("the first runs", lambda: job.children("rayjob") == ["math-1"], 60)
    first = job.body()["metadata"]["uid"]
    control_plane.kubectl("delete", "rljob", "math", "-n", job.namespace, "--wait=true")
    eventually("its RayJob is gone", lambda: job.children("rayjob") == [], 60)
    control_plane.apply(quickstart("math", job.namespace))
    eventually("the second is refused", lambda: job.condition("Failed") == "True", 60)
    assert job.status()["reason"] == "StorageMismatch"
    control_plane.kubectl("delete", "rljob", "math", "-n", job.namespace, "--wait=true")
    heir = quickstart("math", job.namespace)
    heir["metadata"]["annotations"] = {"rl.crescendo.dev/adopt-storage": first}
    control_plane.apply(heir)
    eventually("the heir starts", lambda: job.children("rayjob") == ["math-1"], 60)


def test_suspension_and_its_end(
    control_plane: ControlPlane, operator: Operator, job: JobView, eventually: Eventually
) -> None:
    eventually("the first attempt", lambda: job.children("rayjob") == ["math-1"], 60)
    job.patch(suspend=True)
    eventually("it is suspended", lambda: job.phase == "Suspended", 60)
    assert job.children("rayjob") == []
    eventually("its pods are gone", lambda: job.children("pod") in ([], ["math-buffer-0"]), 60)
    job.patch(suspend=False)
    eventually("the second attempt", lambda: job.children("rayjob") == ["math-2"], 60)
    assert job.status().get("failures", 0) == 0


def test_a_rayjob_deleted_by_hand_is_replaced_and_counted(
    control_plane: ControlPlane, operator: Operator, job: JobView, eventually: Eventually
) -> None:
    eventually("the first attempt", lambda: job.children("rayjob") == ["math-1"], 60)
    eventually("it is on record", lambda: job.status().get("attempt") == 1, 60)
    control_plane.kubectl("delete", "rayjob", "math-1", "-n", job.namespace)
    eventually("the second attempt", lambda: job.children("rayjob") == ["math-2"], 90)
    assert job.status()["restarts"] == 1


def test_a_job_that_cannot_run_fails_with_what_is_wrong(
    control_plane: ControlPlane, operator: Operator, namespace: str, eventually: Eventually
) -> None:
    manifest = quickstart("wrong", namespace)
    manifest["spec"]["run"]["rewards"]["chains"] = {}
    control_plane.apply(manifest)
    job = JobView(control_plane, "wrong", namespace)
    eventually("it fails", lambda: job.condition("Failed") == "True", 60)
    assert job.condition("Accepted") == "False"
    assert "rewards.chains has no scorers" in job.status()["message"]
    assert job.children("rayjob") == []


def test_what_keeps_pods_from_starting_is_told(
    control_plane: ControlPlane, operator: Operator, namespace: str, eventually: Eventually
) -> None:
    volumes(control_plane, namespace, ("large",))
    too_many = {"mode": "Colocated", "nodes": 1, "devicesPerNode": 64}
    control_plane.apply(quickstart("large", namespace, placement=too_many))
    job = JobView(control_plane, "large", namespace)
    eventually("it is told", lambda: job.status().get("reason") == "PodsBlocked", 150)
    assert "worker" in job.status()["message"]
    assert "Insufficient nvidia.com/gpu" in job.status()["message"]
    assert "PodsBlocked" in control_plane.kubectl("describe", "rljob", "large", "-n", namespace)


def test_a_steady_job_is_not_written(operator: Operator, job: JobView, eventually: Eventually) -> None:
    eventually("the cluster is ready", lambda: job.condition("ClusterReady") == "True", 120)
    time.sleep(4)
    before = job.body()["metadata"]["resourceVersion"]
    time.sleep(10)
    assert job.body()["metadata"]["resourceVersion"] == before


def test_kubectl_errors_are_told(control_plane: ControlPlane) -> None:
    with pytest.raises(KubectlError, match="NotFound"):
        control_plane.kubectl("get", "rljob", "nobody")
