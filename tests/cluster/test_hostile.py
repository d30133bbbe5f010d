"""What a tenant says, and what the API server refuses of a job: its status tells it, and nothing is stuck."""

import json
import subprocess
from collections.abc import Callable

import pytest

from tests.cluster.controller_stub import StubController
from tests.cluster.jobs import JobView, crescendo
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.operator_process import Operator

pytestmark = pytest.mark.timeout(600)
Eventually = Callable[..., None]
NAMELESS = {"component": "worker", "template": {"spec": {"containers": [{"env": []}]}}}


def test_whatever_a_run_says_the_status_takes_it(
    operator_with_runs: Operator,
    controller: StubController,
    create: Callable[..., JobView],
    eventually: Eventually,
) -> None:
    controller.run.status.eta_seconds = 1e300
    controller.run.status.iteration = controller.run.status.max_iterations = 2**62
    talks, fails = create("talks"), create("fails")
    for job in (talks, fails):
        eventually(f"{job.name} has an attempt", lambda job=job: job.children("rayjob") == [f"{job.name}-1"], 60)
    talks.kuberay_says(1, jobDeploymentStatus="Running", jobStatus="RUNNING")
    said = "\x1b[31mexit code 1: " + "\u00e9" * 3000
    fails.kuberay_says(1, jobDeploymentStatus="Failed", jobStatus="FAILED", message=said)
    eventually("its failure is told", lambda: fails.status().get("failures") == 1, 30)
    assert "\x1b" not in json.dumps(fails.status(), ensure_ascii=False)
    eventually("it runs", lambda: talks.phase == "Running", 30)


def test_what_the_api_server_refuses_of_a_child_stands_in_the_status(
    operator: Operator, create: Callable[..., JobView], eventually: Eventually
) -> None:
    job = create("math", podPatches=[NAMELESS])
    eventually("it says what is refused", lambda: job.status().get("reason") == "Refused", 30)
    assert "name" in job.status()["message"]
    assert job.phase == "Pending"
    job.patch(podPatches=[])
    eventually("it starts", lambda: job.phase == "Starting", 90)


def test_logs_of_pods_that_have_none_yet_say_so(
    control_plane: ControlPlane, operator: Operator, create: Callable[..., JobView], eventually: Eventually
) -> None:
    job = create("math")
    eventually("it has a cluster", lambda: "rayCluster" in job.status().get("cluster", {}), 60)
    eventually(
        "it has a head", lambda: "pod/" in control_plane.kubectl("get", "pod", "-n", job.namespace, "-o", "name"), 60
    )
    ran: subprocess.CompletedProcess[str] = crescendo(control_plane, "logs", "math", "--head", "-n", job.namespace)
    assert ran.returncode == 1, ran.stderr
    assert "has no log now" in ran.stderr, ran.stderr
