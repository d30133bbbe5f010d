"""The operator dies after each of its writes, every kind of write of a job's life enumerated: always the same end.

A proxy lets a write through, kills the operator with SIGKILL before it hears of it, and starts it again; every write is
struck once. A write that is repeated after the restart passes, so that the job's life goes on to its next write. Two
lives: in one the children are struck, in the other what is told of them, which a struck child would have pre-empted.
"""

import hashlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.controller_stub import StubController
from tests.cluster.jobs import JobView, quickstart, volumes
from tests.cluster.kube.build import binaries
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.kube.proxy import Fault, Proxy, Request
from tests.cluster.operator_process import Operator

pytestmark = pytest.mark.timeout(900)
Eventually = Callable[..., None]
TOLD = ("rljobs/status", "events")
# What a life writes, at the least: that the enumeration has not lost some.
WRITES = {
    "children": {
        "patch secrets", "create secrets", "patch serviceaccounts", "patch configmaps", "patch services",
        "patch networkpolicies", "patch persistentvolumeclaims", "patch statefulsets", "patch rayjobs",
        "delete rayjobs", "delete rljobs",
    },
    "told": {"patch rljobs/status", "create events"},
}  # fmt: skip
POINTS = {"children": 18, "told": 14}


def point(request: Request) -> str:
    """A name for a write, the same when it is repeated."""
    body: Any = request.body
    about = request.name
    if request.resource == "rljobs/status":
        status = body[-1]["value"]
        shown = {one["type"]: one["status"] for one in status.get("conditions", ())}
        told = [status.get(field) for field in ("phase", "reason", "attempt", "failures", "readySummary")]
        about = json.dumps([*told, shown, (status.get("progress") or {}).get("iteration")])
    elif request.resource == "events":
        about = f"{body['reason']} {body['note']}"
    elif request.resource != "secrets" and body is not None:  # a certificate is another one each time
        about += hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:8]
    return f"{request.verb} {request.resource} {about}"


class Killer:
    """Strikes after each write of a kind that was not struck yet."""

    def __init__(self, operator: Operator, what: str) -> None:
        self._operator = operator
        self._told = what == "told"
        self._lock = threading.Lock()
        self._ended = False
        self.struck: list[str] = []

    def __call__(self, request: Request) -> Fault | None:
        if not request.writes or (request.resource in TOLD) != self._told or point(request) in self.struck:
            return None
        self.struck.append(point(request))
        return Fault(then=self._strike)

    def _strike(self) -> None:
        with self._lock:
            self._operator.kill()
            if not self._ended:
                self._operator.start()

    def end(self) -> None:
        """Kills it for good."""
        with self._lock:
            self._ended = True
            self._operator.kill()


@pytest.fixture
def rayjobs_seen(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """Every RayJob's coming and going in the namespace, as the API server tells it."""
    path = tmp_path / "rayjobs"
    command = [
        str(binaries() / "kubectl"), f"--kubeconfig={control_plane.admin}", "get", "rayjobs", "-n", namespace, "-w",
        "--output-watch-events", '-o=jsonpath={.type} {.object.metadata.name}{"\\n"}',
    ]  # fmt: skip
    with path.open("wb") as out:
        watching = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    yield lambda: [line for line in path.read_text().splitlines() if not line.startswith("MODIFIED")]
    watching.kill()
    watching.wait()


def live(job: JobView, controller: StubController, eventually: Eventually) -> None:
    """Runs, is suspended and resumed, fails once, succeeds, and is deleted by its ttl."""
    eventually("the cluster is ready", lambda: job.condition("ClusterReady") == "True", 240)
    job.kuberay_says(1, jobDeploymentStatus="Running", jobStatus="RUNNING")
    eventually("it runs", lambda: job.phase == "Running", 60)
    job.patch(suspend=True)
    eventually("it is suspended", lambda: job.phase == "Suspended", 90)
    eventually("its buffer is given back", lambda: job.children("pod") == [], 90)
    controller.run.status.phase = "rollout"
    job.patch(suspend=False)
    eventually("the second attempt", lambda: job.children("rayjob") == ["math-2"], 90)
    job.kuberay_says(2, jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed", message="exit code 1")
    eventually("the third attempt", lambda: job.children("rayjob") == ["math-3"], 120)
    assert job.status()["failures"] == 1
    job.kuberay_says(3, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    eventually("it is complete", lambda: job.condition("Complete") == "True", 60)
    assert job.status()["attempt"] == 3
    assert job.status()["restarts"] == 2


@pytest.mark.parametrize("what", sorted(WRITES))
def test_an_operator_killed_after_each_write_makes_no_second_child_and_the_job_ends(
    control_plane: ControlPlane,
    proxy: Proxy,
    controller: StubController,
    rayjobs_seen: Callable[[], list[str]],
    namespace: str,
    tmp_path: Path,
    eventually: Eventually,
    what: str,
) -> None:
    kubeconfig = control_plane.user("operator", server=proxy.url)
    operator = Operator(kubeconfig, tmp_path, [namespace], controllers=controller.address)
    proxy.decide = killer = Killer(operator, what)
    volumes(control_plane, namespace)
    control_plane.apply(quickstart("math", namespace, ttlSecondsAfterFinished=3600))
    job = JobView(control_plane, "math", namespace)
    operator.start()
    try:
        eventually("the buffer's password", lambda: job.children("secret").count("math-buffer") == 1, 120)
        password = control_plane.get("secret", "math-buffer", "-n", namespace)["data"]
        live(job, controller, eventually)
        assert control_plane.get("secret", "math-buffer", "-n", namespace)["data"] == password
        assert rayjobs_seen() == [
            "ADDED math-1", "DELETED math-1", "ADDED math-2", "DELETED math-2", "ADDED math-3",
        ]  # fmt: skip
        job.patch(ttlSecondsAfterFinished=1)
        eventually("it is deleted", lambda: "math" not in control_plane.kubectl("get", "rljob", "-n", namespace), 60)
    finally:
        killer.end()
        print(*killer.struck, operator.log[-4000:], sep="\n")
    assert {" ".join(point.split(" ")[:2]) for point in killer.struck} == WRITES[what]
    assert proxy.injected["then"] == len(killer.struck) >= POINTS[what]
