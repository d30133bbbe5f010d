"""The chart on a real API server, with real Helm: installed, upgraded, rolled back, uninstalled; and its rights.

Pods of the chart run on fake nodes, so that Deployments become ready though no image exists; the operator runs beside
them as a process with the token of the chart's own service account, and so with the chart's own rights.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.jobs import JobView, quickstart, refusal, volumes
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.kube.helm import CHART, Helm
from tests.cluster.kube.proxy import Proxy
from tests.cluster.operator_process import Operator

pytestmark = pytest.mark.timeout(900)
Eventually = Callable[..., None]
SYSTEM = "crescendo-system"
VALUES = {"executor": {"acceptSharedKernel": True}}
DEFINITION = "rljobs.rl.crescendo.dev"
# Rights that a plain life of a job does not use, each with what it is for.
RARE = {
    ("update", "rljobs/finalizers"): "blockOwnerDeletion, where the API server checks it",
    ("patch", "rayclusters"): "scaling at a promotion",
    ("list", "workloads"): "why Kueue holds a job back",
    ("list", "pods"): "how far the fetch step of a head is, and what keeps pods that are late",
}
CARELESS = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "careless", "namespace": SYSTEM},
    "spec": {"containers": [{"name": "careless", "image": "x"}]},
}


@pytest.fixture(scope="module")
def helm(control_plane: ControlPlane) -> Iterator[Helm]:
    """Crescendo installed, in a namespace that enforces Pod Security; the definition is handed to Helm."""
    control_plane.kubectl("label", "crd", DEFINITION, "app.kubernetes.io/managed-by=Helm", "--overwrite")
    release = ("meta.helm.sh/release-name=crescendo", f"meta.helm.sh/release-namespace={SYSTEM}")
    control_plane.kubectl("annotate", "crd", DEFINITION, *release, "--overwrite")
    control_plane.kubectl(
        "label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted", "--overwrite"
    )  # fmt: skip
    found = Helm(control_plane.admin, SYSTEM)
    found.install("crescendo", CHART, VALUES)
    yield found
    if "crescendo" in deployments(control_plane):
        found.uninstall("crescendo")
    control_plane.kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce-")


def deployments(plane: ControlPlane) -> dict[str, tuple[int, int]]:
    """(wanted, available) replicas of each Deployment of the release."""
    found = plane.get("deployment", "-n", SYSTEM, "-l", "app.kubernetes.io/instance=crescendo")["items"]
    return {
        one["metadata"]["name"]: (one["spec"]["replicas"], one["status"].get("availableReplicas", 0)) for one in found
    }


def account(plane: ControlPlane, name: str, folder: Path, server: str = "") -> Path:
    """A kubeconfig with a token of a service account of the release."""
    token = plane.kubectl("create", "token", name, "-n", SYSTEM).strip()
    config = json.loads(plane.admin.read_text())
    config["users"][0]["user"] = {"token": token}
    config["clusters"][0]["cluster"]["server"] = server or plane.server
    path = folder / f"{name}.kubeconfig"
    path.write_text(json.dumps(config))
    return path


def rights(plane: ControlPlane, name: str, namespace: str) -> set[tuple[str, str]]:
    """(verb, resource) that a service account of the release has beyond what everybody has."""

    def listed(who: str) -> set[tuple[str, str]]:
        user = f"--as=system:serviceaccount:{SYSTEM}:{who}"
        groups = ("--as-group=system:serviceaccounts", "--as-group=system:authenticated")
        lines = plane.kubectl("auth", "can-i", "--list", "-n", namespace, user, *groups).splitlines()[1:]
        found = set()
        for line in lines:
            resource, _, verbs = line.partition(" ")
            resource = "/".join(part.partition(".")[0] for part in resource.split("/"))
            for verb in verbs[verbs.rindex("[") + 1 : verbs.rindex("]")].split():
                found.add((verb, resource))
        return found

    return listed(name) - listed("default")


def settings(plane: ControlPlane) -> dict[str, str]:
    """The operator's environment."""
    found = plane.get("deployment", "crescendo-operator", "-n", SYSTEM)["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry.get("value", "") for entry in found["env"]}


def test_everything_becomes_ready_under_pod_security(control_plane: ControlPlane, helm: Helm) -> None:
    found = deployments(control_plane)
    assert set(found) == {f"crescendo-{name}" for name in ("operator", "console", "reward", "executor")}
    assert all(wanted == available > 0 for wanted, available in found.values()), found
    assert "violates PodSecurity" in refusal(control_plane, CARELESS)


def test_the_consoles_right_is_one_review(control_plane: ControlPlane, helm: Helm) -> None:
    assert rights(control_plane, "crescendo-console", SYSTEM) == {("create", "tokenreviews")}


def test_the_operator_does_its_work_with_its_rights_and_has_no_others(
    control_plane: ControlPlane, helm: Helm, proxy: Proxy, namespace: str, tmp_path: Path, eventually: Eventually
) -> None:
    kubeconfig = account(control_plane, "crescendo-operator", tmp_path, proxy.url)
    operator = Operator(kubeconfig, tmp_path)
    volumes(control_plane, namespace)
    control_plane.apply(quickstart("math", namespace))
    job = JobView(control_plane, "math", namespace)
    operator.start()
    try:
        eventually("the cluster is ready", lambda: job.condition("ClusterReady") == "True", 120)
        job.patch(suspend=True)
        eventually("it is suspended", lambda: job.phase == "Suspended", 60)
        eventually("its buffer is given back", lambda: job.children("pod") == [], 60)
        job.patch(suspend=False)
        eventually("the second attempt", lambda: job.children("rayjob") == ["math-2"], 60)
        job.kuberay_says(2, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
        eventually("it is complete", lambda: job.condition("Complete") == "True", 60)
        job.patch(ttlSecondsAfterFinished=1)
        eventually("it is gone", lambda: "math" not in control_plane.kubectl("get", "rljob", "-n", namespace), 60)
        eventually("it watches", lambda: proxy.seen["watch", "rayclusters"] > 0)
        # A namespace of an earlier test, which is on its way out, refuses everybody.
        refused = [line for line in operator.log.splitlines() if "orbidden" in line]
        assert all("is being terminated" in line for line in refused), refused
    finally:
        operator.kill()
        print(operator.log[-4000:])
    granted = rights(control_plane, "crescendo-operator", namespace)
    unused = granted - set(proxy.seen) - {("create", resource) for verb, resource in proxy.seen if verb == "patch"}
    assert unused | {("list", "pods")} == set(RARE)  # where the pods were late, they were looked at
    refused = {("list", "secrets"), ("delete", "secrets"), ("create", "pods"), ("create", "pods/exec"),
               ("update", "rljobs"), ("patch", "rljobs"), ("delete", "persistentvolumeclaims")}  # fmt: skip
    assert not refused & granted


@pytest.mark.parametrize(("role", "verbs"), [("view", {"get", "list", "watch"}), ("edit", {"create", "delete"})])
def test_people_get_rljobs_by_the_built_in_roles(
    control_plane: ControlPlane, helm: Helm, namespace: str, role: str, verbs: set[str]
) -> None:
    control_plane.kubectl("create", "rolebinding", role, "-n", namespace, f"--clusterrole={role}", "--user=ada")
    listed = control_plane.kubectl("auth", "can-i", "--list", "-n", namespace, "--as=ada")
    lines = [line for line in listed.splitlines() if line.startswith(f"{DEFINITION} ")]
    granted = {verb for line in lines for verb in line[line.rindex("[") + 1 : line.rindex("]")].split()}
    assert verbs <= granted
    assert ("create" in granted) == (role == "edit")


def test_upgrade_and_rollback_leave_jobs_alone_and_uninstalling_strands_nothing(
    control_plane: ControlPlane, helm: Helm, namespace: str, tmp_path: Path, eventually: Eventually
) -> None:
    operator = Operator(account(control_plane, "crescendo-operator", tmp_path), tmp_path)
    volumes(control_plane, namespace)
    control_plane.apply(quickstart("math", namespace))
    job = JobView(control_plane, "math", namespace)
    operator.start()
    try:
        eventually("the cluster is ready", lambda: job.condition("ClusterReady") == "True", 120)
    finally:
        operator.kill()
    before = control_plane.get("rayjob", "math-1", "-n", namespace)["spec"]

    assert settings(control_plane)["CRESCENDO_RESYNC_S"] == "30"
    helm.upgrade("crescendo", CHART, {**VALUES, "operator": {"resyncSeconds": 7}, "console": {"replicas": 3}})
    assert settings(control_plane)["CRESCENDO_RESYNC_S"] == "7"
    assert deployments(control_plane)["crescendo-console"] == (3, 3)
    helm.rollback("crescendo")
    assert settings(control_plane)["CRESCENDO_RESYNC_S"] == "30"
    assert control_plane.get("rayjob", "math-1", "-n", namespace)["spec"] == before

    helm.uninstall("crescendo")
    assert deployments(control_plane) == {}
    assert left_behind(control_plane) == {"clusterrole": 0, "clusterrolebinding": 0, "crd": 1}
    assert job.children("rayjob") == ["math-1"]
    assert "crescendo-authority" in control_plane.kubectl("get", "secret", "-n", SYSTEM, "-o", "name")
    control_plane.kubectl("delete", "rljob", "math", "-n", namespace, "--timeout=60s")
    for kind in ("rayjob", "pod", "statefulset", "secret", "networkpolicy"):
        eventually(f"every {kind} is gone", lambda kind=kind: job.children(kind) == [], 90)

    helm.install("crescendo", CHART, VALUES)
    assert all(wanted == available for wanted, available in deployments(control_plane).values())


def left_behind(plane: ControlPlane) -> Counter[str]:
    """Objects of the whole cluster that carry the release's label."""
    kinds = ("clusterrole", "clusterrolebinding", "crd")
    label = "app.kubernetes.io/managed-by=Helm"
    return Counter({kind: plane.kubectl("get", kind, "-l", label, "-o", "name").count("\n") for kind in kinds})
