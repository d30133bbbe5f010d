"""The operator as a process against a real API server, controller manager, KubeRay and fake nodes, through faults."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.cluster.jobs import JobView, quickstart
from tests.cluster.kube.control_plane import ControlPlane, KubectlError
from tests.cluster.kube.proxy import Fault, Proxy

pytestmark = pytest.mark.timeout(900)
Eventually = Callable[..., None]


class Operator:
    """The operator's process. kubeconfig: of its service account, or of a proxy."""

    def __init__(self, kubeconfig: Path, folder: Path, namespace: str) -> None:
        self._kubeconfig = kubeconfig
        self._folder = folder
        self._namespace = namespace
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "KUBECONFIG": str(self._kubeconfig),
            "CRESCENDO_IDENTITY": str(self._folder / "identity"),
            "CRESCENDO_WATCH_NAMESPACES": self._namespace,
            "CRESCENDO_RESYNC_S": "3",
            "CRESCENDO_HEALTH_PORT": "0",
        }
        with (self._folder / "operator.log").open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "crescendo.controller.operator"],
                env=environment, cwd=self._folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        assert self._child is not None
        os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    @property
    def log(self) -> str:
        return (self._folder / "operator.log").read_text(errors="replace")


@pytest.fixture
def operator(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    found = Operator(control_plane.admin, tmp_path, namespace)
    found.start()
    yield found
    found.kill()
    print(found.log[-4000:])  # pytest shows it when the test failed


@pytest.fixture
def job(control_plane: ControlPlane, namespace: str) -> JobView:
    volumes(control_plane, namespace)
    control_plane.apply(quickstart("math", namespace))
    return JobView(control_plane, "math", namespace)


def volumes(plane: ControlPlane, namespace: str, names: tuple[str, ...] = ("math-run", "data-math-buffer-0")) -> None:
    """Volumes for the claims of a job: nobody provisions any here."""
    for name in names:
        plane.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": f"{namespace}-{name}"},
                "spec": {
                    "capacity": {"storage": "100Gi"},
                    "accessModes": ["ReadWriteOnce"],
                    "hostPath": {"path": "/nowhere"},
                    "claimRef": {"namespace": namespace, "name": name},
                },
            }
        )


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
    events = control_plane.kubectl("get", "events", "-n", job.namespace, "--field-selector=involvedObject.kind=RLJob")
    assert "AttemptCreated" in events


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


def test_a_steady_job_is_not_written(operator: Operator, job: JobView, eventually: Eventually) -> None:
    eventually("the cluster is ready", lambda: job.condition("ClusterReady") == "True", 120)
    time.sleep(4)
    before = job.body()["metadata"]["resourceVersion"]
    time.sleep(10)
    assert job.body()["metadata"]["resourceVersion"] == before


def test_an_operator_killed_again_and_again_makes_no_second_child(
    control_plane: ControlPlane, operator: Operator, namespace: str, eventually: Eventually
) -> None:
    volumes(control_plane, namespace)
    job = JobView(control_plane, "math", namespace)
    control_plane.apply(quickstart("math", namespace))
    for round_number in range(4):
        time.sleep(0.8 + 0.9 * round_number)
        operator.kill()
        assert len(job.children("rayjob")) <= 1
        operator.start()
    eventually("the cluster is ready", lambda: job.condition("ClusterReady") == "True", 120)
    assert job.children("rayjob") == ["math-1"]
    assert job.status().get("failures", 0) == 0


# Faults between operator and API server -----------------------------------------------------------------


@pytest.fixture
async def proxy(control_plane: ControlPlane) -> AsyncIterator[Proxy]:
    found = Proxy(control_plane.server, control_plane.folder / "pki")
    await found.start()
    yield found
    await found.stop()


async def test_faults_of_the_api_server_delay_but_change_nothing(
    control_plane: ControlPlane, proxy: Proxy, namespace: str, tmp_path: Path
) -> None:
    dice = random.Random(7)

    def decide(request: web.Request) -> Fault | None:
        if request.query.get("watch"):
            return Fault(status=410) if dice.random() < 0.2 else Fault(cut_s=dice.uniform(1, 4))
        chance = dice.random()
        writes = request.method in ("PATCH", "POST", "PUT", "DELETE")
        if chance < 0.08:
            return Fault(status=dice.choice([429, 500, 503]))
        if chance < 0.14 and writes:
            return Fault(status=409)
        if chance < 0.20 and writes:
            return Fault(status=500, after=True)
        return Fault(delay_s=dice.uniform(0.1, 0.6)) if chance < 0.3 else None

    proxy.decide = decide
    kubeconfig = control_plane.user("operator", ("system:masters",), server=proxy.url)
    operator = Operator(kubeconfig, tmp_path, namespace)
    operator.start()
    try:
        await asyncio.to_thread(volumes, control_plane, namespace)
        await asyncio.to_thread(control_plane.apply, quickstart("math", namespace))
        job = JobView(control_plane, "math", namespace)
        await until("the cluster is ready", lambda: job.condition("ClusterReady") == "True", 180)
        await asyncio.to_thread(job.patch, suspend=True)
        await until("it is suspended", lambda: job.phase == "Suspended", 120)
        await asyncio.to_thread(job.patch, suspend=False)
        await until("the second attempt", lambda: job.children("rayjob") == ["math-2"], 120)
        assert job.status().get("failures", 0) == 0
    finally:
        operator.kill()
        print(dict(proxy.seen), dict(proxy.injected), operator.log[-4000:])
    assert sum(proxy.injected.values()) > 10, proxy.injected


async def until(what: str, holds: Callable[[], Any], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not await asyncio.to_thread(holds):
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {limit_s:.0f} s", pytrace=False)
        await asyncio.sleep(0.3)


def test_kubectl_errors_are_told(control_plane: ControlPlane) -> None:
    with pytest.raises(KubectlError, match="NotFound"):
        control_plane.kubectl("get", "rljob", "nobody")
