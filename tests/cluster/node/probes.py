"""Pods that try connections, and programs that pods of the project run for the same: all their images have Python."""

import json
from dataclasses import dataclass
from typing import Any, Final

from tests.cluster.kube.images import version
from tests.cluster.kube.node import Node

Manifest = dict[str, Any]
# Arguments: host:port each. Prints a list of those that take a connection.
_CONNECT: Final = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def connects(target):
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 3).close()
    except OSError:
        return False
    return True
targets = sys.argv[1:]
with ThreadPoolExecutor(32) as pool:
    print(json.dumps([target for target, done in zip(targets, pool.map(connects, targets)) if done]))
"""
# Prints the TCP ports that somebody in this pod listens on, but those of loopback alone (proc_pid_net(5): 0A listens).
_LISTENING: Final = """
import json
rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").readlines()[1:]]
found = [row[1].split(":") for row in rows if row[3] == "0A"]
loopback = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
print(json.dumps(sorted({int(port, 16) for address, port in found if address not in loopback})))
"""


@dataclass(frozen=True)
class Pod:
    """A pod by name, and where it is reached."""

    namespace: str
    name: str
    address: str

    @classmethod
    def found(cls, node: Node, namespace: str, labels: str) -> "Pod":
        """The one running pod with these labels."""
        pods = node.get("pods", "-n", namespace, "-l", labels, "--field-selector=status.phase=Running")["items"]
        (pod,) = (pod for pod in pods if "deletionTimestamp" not in pod["metadata"])
        return cls(namespace, pod["metadata"]["name"], pod["status"]["podIP"])


def reached(node: Node, source: Pod, addresses: list[str]) -> set[str]:
    """Which of host:port a pod connects to."""
    return set(_run(node, source, _CONNECT, *addresses))


def listening(node: Node, pod: Pod) -> list[int]:
    """TCP ports of a pod that others can try."""
    return [int(port) for port in _run(node, pod, _LISTENING)]


def probe_pod(name: str, namespace: str, labels: dict[str, str]) -> Manifest:
    """A pod that does nothing until it is told to; it passes Pod Security restricted."""
    container = {
        "name": "probe",
        "image": f"localhost/crescendo/operator:{version()}",
        "command": ["python", "-c", "import signal; signal.sigwait([signal.SIGTERM])"],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    user = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [container], "securityContext": user, "automountServiceAccountToken": False},
    }


def allow_all(namespace: str) -> Manifest:
    """A policy that lets every pod of a namespace in and out. Policies add up: it undoes all others."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "allow-all", "namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]},
    }


def _run(node: Node, pod: Pod, program: str, *arguments: str) -> list[Any]:
    said = node.kubectl("exec", "-n", pod.namespace, pod.name, "--", "python", "-c", program, *arguments)
    found: list[Any] = json.loads(said)
    return found
