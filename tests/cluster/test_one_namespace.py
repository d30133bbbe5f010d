"""One team installs for itself: rights in one namespace alone, real Helm, the operator with its own Role."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.jobs import ROOT, JobView, quickstart, volumes
from tests.cluster.kube.control_plane import ControlPlane, KubectlError
from tests.cluster.kube.helm import CHART, Helm
from tests.cluster.operator_process import Operator
from tests.unit.chart.test_chart import render

pytestmark = pytest.mark.timeout(600)
ALONE: dict[str, Any] = {
    "singleNamespace": True,
    "clusterObjects": False,
    "executor": {"acceptSharedKernel": True},
}
RBAC = "rbac.authorization.k8s.io"


def documented_role(namespace: str) -> dict[str, Any]:
    """What docs/operations.md says that an installer needs beside `admin`."""
    text = (ROOT / "docs/operations.md").read_text()
    block = next(part for part in text.split("```") if "crescendo-installer" in part).removeprefix("yaml")
    role: dict[str, Any] = yaml.safe_load(block.replace("TEAM", namespace))
    return role


def installer(plane: ControlPlane, namespace: str) -> Path:
    """Ada, who is the administrator of one namespace."""
    plane.apply(documented_role(namespace))
    for name, kind in (("admin", "ClusterRole"), ("crescendo-installer", "Role")):
        plane.apply(
            {
                "apiVersion": f"{RBAC}/v1", "kind": "RoleBinding",
                "metadata": {"name": f"ada-{name}", "namespace": namespace},
                "roleRef": {"apiGroup": RBAC, "kind": kind, "name": name},
                "subjects": [{"kind": "User", "name": "ada", "apiGroup": RBAC}],
            }
        )  # fmt: skip
    return plane.user("ada")


def operator_of(plane: ControlPlane, namespace: str, folder: Path) -> Operator:
    """The operator as the chart set it up: its service account, its environment."""
    found = plane.get("deployment", "crescendo-operator", "-n", namespace)["spec"]["template"]["spec"]
    told = {one["name"]: one["value"] for one in found["containers"][0]["env"] if "value" in one}
    config = json.loads(plane.admin.read_text())
    token = plane.kubectl("create", "token", found["serviceAccountName"], "-n", namespace).strip()
    config["users"][0]["user"] = {"token": token}
    path = folder / "operator.kubeconfig"
    path.write_text(json.dumps(config))
    environment = {
        "CRESCENDO_NAMESPACE": namespace,
        "CRESCENDO_VERBS_REVIEWED": told["CRESCENDO_VERBS_REVIEWED"],
        "CRESCENDO_BUFFER_IMAGE": told["CRESCENDO_BUFFER_IMAGE"],
    }
    return Operator(path, folder, [namespace], **environment)


def test_an_installer_with_rights_in_one_namespace_needs_no_others(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    ada = installer(control_plane, namespace)
    role = ("create", "clusterrole", "mine", "--verb=get", "--resource=pods", "--dry-run=server")
    with pytest.raises(KubectlError, match="orbidden"):
        control_plane.kubectl(*role, kubeconfig=ada)
    Helm(ada, namespace).install("crescendo", CHART, ALONE, create_namespace=False)

    operator = operator_of(control_plane, namespace, tmp_path)
    volumes(control_plane, namespace)
    control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(quickstart("math", namespace)), kubeconfig=ada)
    job = JobView(control_plane, "math", namespace)
    operator.start()
    try:
        eventually("the cluster is ready", lambda: job.condition("ClusterReady") == "True", 120)
        patch = json.dumps({"metadata": {"annotations": {"rl.crescendo.dev/request": "pause 1"}}})
        line = ("patch", "rljob", "math", "-n", namespace, "--type=merge", "-p", patch)
        control_plane.kubectl(*line, kubeconfig=ada)
        eventually("the verb is refused", lambda: "request" in job.status(), 60)
        assert "nobody reviews here who asks" in job.status()["request"]["message"]
        job.patch(suspend=True)
        eventually("it is suspended", lambda: job.phase == "Suspended", 60)
        assert "orbidden" not in operator.log
    finally:
        operator.kill()
        print(operator.log[-4000:])
    Helm(ada, namespace).uninstall("crescendo")
    assert "deployment" not in control_plane.kubectl("get", "deployment", "-n", namespace, "-o", "name")


def test_what_an_administrator_adds_is_taken_by_the_api_server(control_plane: ControlPlane, namespace: str) -> None:
    values = {"singleNamespace": True}
    added = [one for one in render(values) if "namespace" not in one["metadata"]]
    assert {one["kind"] for one in added} >= {"CustomResourceDefinition", "ValidatingAdmissionPolicy", "ClusterRole"}
    for manifest in added:
        line = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-")
        control_plane.kubectl(*line, stdin=json.dumps(manifest))
