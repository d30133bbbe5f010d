"""RLJobs of the cluster tests, and what KubeRay would say of their RayJobs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from crescendo.common.config import read_mapping
from crescendo.controller.operator.render import to_rljob
from tests.cluster.kube.control_plane import ControlPlane, KubectlError

ROOT = Path(__file__).parents[2]
Manifest = dict[str, Any]


def quickstart(name: str, namespace: str, **spec: Any) -> Manifest:
    """The quick start as an RLJob."""
    run = read_mapping(ROOT / "recipes/quickstart/recipe.yaml")
    job = to_rljob(run, image="localhost/crescendo:dev", name=name, namespace=namespace)
    job["spec"] |= spec
    return job


def volumes(plane: ControlPlane, namespace: str, names: tuple[str, ...] = ("math",)) -> None:
    """Volumes for the claims of jobs of these names: nobody provisions any here."""
    claims = [claim for name in names for claim in (f"{name}-run", f"data-{name}-buffer-0")]
    items = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{namespace}-{claim}"},
            "spec": {
                "capacity": {"storage": "100Gi"},
                "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                "hostPath": {"path": "/nowhere"},
                "claimRef": {"namespace": namespace, "name": claim},
            },
        }
        for claim in claims
    ]
    plane.apply({"apiVersion": "v1", "kind": "List", "items": items})


def crescendo(plane: ControlPlane, *arguments: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command, as who the kubeconfig says: the administrator unless given."""
    config = str(kubeconfig or plane.admin)
    command = [sys.executable, "-m", "crescendo.cli.main", *arguments, "--kubeconfig", config]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


class JobView:
    """One RLJob through kubectl."""

    def __init__(self, plane: ControlPlane, name: str, namespace: str) -> None:
        self._plane = plane
        self.name = name
        self.namespace = namespace

    def body(self) -> Manifest:
        """The whole object."""
        return self._plane.get("rljob", self.name, "-n", self.namespace)

    def status(self) -> Manifest:
        """Its status."""
        found: Manifest = self.body().get("status", {})
        return found

    @property
    def phase(self) -> str:
        """status.phase."""
        return str(self.status().get("phase", ""))

    def condition(self, kind: str) -> str:
        """The status of a condition."""
        return next((one["status"] for one in self.status().get("conditions", ()) if one["type"] == kind), "")

    def patch(self, **spec: Any) -> None:
        """Changes the spec."""
        self._plane.kubectl(
            "patch", "rljob", self.name, "-n", self.namespace, "--type=merge", "-p", json.dumps({"spec": spec})
        )

    def children(self, kind: str) -> list[str]:
        """Names of its children of a kind."""
        label = f"rl.crescendo.dev/job={self.name}"
        found = self._plane.kubectl("get", kind, "-n", self.namespace, "-l", label, "-o", "name")
        return [name.rsplit("/", 1)[-1] for name in found.split()]

    def kuberay_says(self, attempt: int, **status: Any) -> None:
        """Writes a RayJob's status, where KubeRay itself has no dashboard to ask."""
        patch = json.dumps({"status": status})
        self._plane.kubectl(
            "patch", "rayjob", f"{self.name}-{attempt}", "-n", self.namespace,
            "--subresource=status", "--type=merge", "-p", patch,
        )  # fmt: skip


def refusal(plane: ControlPlane, manifest: Manifest) -> str:
    """What the API server says against a manifest; empty when it takes it (dry run)."""
    try:
        plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))
    except KubectlError as error:
        return str(error)
    return ""
