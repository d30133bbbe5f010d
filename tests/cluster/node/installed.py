"""What the tests of a real node share: the node with the images on it, Crescendo installed by Helm, a stop-watch."""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.cluster.kube import build, images
from tests.cluster.kube import node as node_module
from tests.cluster.kube.helm import CHART, Helm
from tests.cluster.kube.node import Node
from tests.cluster.kube.seconds import noted

RELEASE: Final = "crescendo"
NAMESPACE: Final = "crescendo-system"
KUBERAY_NAMESPACE: Final = "kuberay-system"
_SMALL: Final = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}}
VALUES: Final[dict[str, Any]] = {
    "global": {"imageRegistry": "localhost"},
    "operator": {"resources": _SMALL, "resyncSeconds": 5},
    "console": {"replicas": 1, "resources": _SMALL},
    "reward": {"replicas": 1, "resources": _SMALL, "autoscaling": {"enabled": False}},
    "executor": {
        "replicas": 1, "workers": 2, "resources": _SMALL, "autoscaling": {"enabled": False}, "acceptSharedKernel": True,
    },
}  # fmt: skip
KUBERAY_VALUES: Final[dict[str, Any]] = {
    "image": {"repository": "localhost/kuberay-operator", "tag": "1"},
    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
}


GAPS: Final = ("torch and other large packages of the run image come from a read-only volume",)


class Stopwatch:
    """Seconds of each step, printed as one line of JSON at the end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times a step."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - begun, 1)

    def report(self) -> str:
        """The line. built_before: what it took to build from nothing what `seconds` found built."""
        found = {"name": "cold_machine_to_succeeded", "cores": os.cpu_count(), "seconds": self.seconds}
        return json.dumps({**found, "built_before": noted(build.cache()), "gaps": GAPS})


def obstacles() -> list[str]:
    """Why this machine can host no node; empty when it can."""
    found = [] if os.geteuid() == 0 else ["root"]
    return found + sorted({*node_module.missing_programs(), *images.missing_programs()})


def build_all(watch: Stopwatch) -> list[Path]:
    """Binaries and images, side by side as far as they can be; the archives."""
    with ThreadPoolExecutor(2) as pool:
        ours = pool.submit(_ours, watch)
        with watch.step("build"):
            build.build(node=True)
            kuberay_chart()  # downloaded here: the node's network leads nowhere
        with watch.step("images"):
            tools = images.build_tools()
        archives = tools + ours.result()
    images.prune()
    return archives


def _ours(watch: Stopwatch) -> list[Path]:
    with watch.step("base image"):
        images.build_base()
    with watch.step("images"):
        return images.build_ours()


def start_node(folder: Path, archives: list[Path], watch: Stopwatch) -> Node:
    """A ready node with these images; the caller stops it."""
    node = Node(folder)
    try:
        with watch.step("cluster up"):
            node.start()
        with watch.step("import images"):
            for archive in archives:
                node.import_image(archive)
    except BaseException:
        node.stop()
        raise
    return node


def install(node: Node, watch: Stopwatch) -> Helm:
    """KubeRay and Crescendo by Helm, every pod in namespaces that enforce Pod Security."""
    for namespace in (KUBERAY_NAMESPACE, NAMESPACE):
        secure_namespace(node, namespace)
    with watch.step("helm install kuberay"):
        Helm(node.admin, KUBERAY_NAMESPACE).install("kuberay", kuberay_chart(), KUBERAY_VALUES)
    helm = Helm(node.admin, NAMESPACE)
    with watch.step("helm install crescendo"):
        helm.install(RELEASE, CHART, VALUES)
    return helm


def kuberay_chart() -> Path:
    """KubeRay's own chart."""
    return build.module_folder("github.com/ray-project/kuberay", within="kuberay") / "helm-chart/kuberay-operator"


def secure_namespace(node: Node, name: str) -> None:
    """A namespace that takes pods of Pod Security restricted only."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    node.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
