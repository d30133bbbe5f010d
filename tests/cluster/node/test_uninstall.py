"""Uninstalling, with jobs still there."""

from collections.abc import Callable

from tests.cluster.kube.helm import Helm
from tests.cluster.kube.node import Node
from tests.cluster.node.installed import NAMESPACE, RELEASE, Stopwatch

Eventually = Callable[..., None]


def test_uninstalling_strands_nothing(
    node: Node, helm: Helm, team: str, watch: Stopwatch, eventually: Eventually
) -> None:
    with watch.step("helm uninstall"):
        helm.uninstall(RELEASE)
        eventually("its pods are gone", lambda: node.get("pods", "-n", NAMESPACE)["items"] == [], 150)
    assert node.kubectl(
        "get", "deployments,services,configmaps,networkpolicies", "-n", NAMESPACE, "-o", "name"
    ).split() == ["configmap/kube-root-ca.crt"]
    jobs = [job["metadata"]["name"] for job in node.get("rljobs", "-n", team)["items"]]
    assert "colocated" in jobs
    for name in jobs:
        node.kubectl("delete", "rljob", name, "-n", team, "--timeout=60s")
    children = ("get", "rayjobs,rayclusters,statefulsets,jobs,pods,networkpolicies", "-n", team, "-o", "name")
    eventually("their children are gone", lambda: node.kubectl(*children).split() == [], 150)
    assert "persistentvolumeclaim/colocated-run" in node.kubectl("get", "pvc", "-n", team, "-o", "name").split()
