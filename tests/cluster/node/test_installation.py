"""What Helm installs works on a real node."""

from tests.cluster.kube.helm import Helm
from tests.cluster.kube.node import Node
from tests.cluster.node.installed import NAMESPACE, RELEASE, Stopwatch


def test_the_installation_works(node: Node, helm: Helm, watch: Stopwatch) -> None:
    with watch.step("helm test"):
        helm.test(RELEASE)
    pods = node.get("pods", "-A")["items"]
    assert {pod["metadata"]["namespace"] for pod in pods} == {NAMESPACE, "kuberay-system"}
    assert [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] != "Running"] == []
    log = node.kubectl("logs", "deploy/crescendo-operator", "-n", NAMESPACE)
    wrong = [line for line in log.splitlines() if " ERROR " in line or line.startswith("Traceback")]
    assert [line for line in wrong if "will retry" not in line] == []  # an API server busy with a new definition: 429
