"""Who may talk to a run's pods: nobody but the run itself, KubeRay, the operator, the console and Prometheus.

Deny everything first, then one policy a component. Egress: names (DNS), the run's own pods, the reward service, and
where stores and hubs answer (HTTPS, and spec.network.egressPorts). A bridge network without a policy engine does not
enforce these; NOTES.txt and `helm test` say so.
"""

from typing import Any
from urllib.parse import urlsplit

from crescendo.controller.operator.children.pods import metadata
from crescendo.controller.operator.children.rayjob import CONTROLLER_PORT
from crescendo.controller.operator.children.storage import BUFFER_PORT
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import COMPONENT_LABEL, JOB_LABEL, Job, Manifest
from crescendo.controller.operator.shared_buffer import is_shared

HTTPS_PORT = 443
METRICS_PORT = 8080  # of Ray itself, on every pod; KubeRay's choice
DASHBOARD_PORT = 8265
RAY_COMPONENTS = ("head", "worker", "rollout", "submitter")


def policies(job: Job, options: Options) -> list[Manifest]:
    """All policies of a job."""
    own = {"podSelector": {"matchLabels": {JOB_LABEL: job.name}}}
    ray = {"podSelector": _components(job, RAY_COMPONENTS)}
    platform = _from_namespace(options.namespace)
    kuberay = _from_namespace(options.kuberay_namespace)
    names = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    return [
        _policy(job, "deny", own["podSelector"], ingress=[], egress=[names]),
        _policy(
            job,
            "ray",
            ray["podSelector"],
            ingress=[
                {"from": [ray]},
                {"from": [kuberay], "ports": [_tcp(DASHBOARD_PORT)]},
                {"from": [_callers(options.namespace)], "ports": [_tcp(CONTROLLER_PORT)]},
                {"from": [_prometheus()], "ports": [_tcp(METRICS_PORT)]},
            ],
            egress=[{"to": [own]}, {"to": [platform]}, _outside(job), *_shared_buffer(job, options)],
        ),
        _policy(
            job,
            "buffer",
            _components(job, ("buffer",)),
            ingress=[{"from": [ray], "ports": [_tcp(BUFFER_PORT)]}],
            egress=[],
        ),
    ]


def _outside(job: Job) -> Manifest:
    """Stores, hub and archive, wherever they are: HTTPS, and the ports that the job names for others."""
    named = (job.spec.get("network") or {}).get("egressPorts") or ()
    return {"ports": [_tcp(port) for port in sorted({HTTPS_PORT, *named})]}


def _shared_buffer(job: Job, options: Options) -> list[Manifest]:
    """A shared server may stand anywhere: its port is open to this job, its login is what limits it there."""
    if not is_shared(job):
        return []
    return [{"ports": [_tcp(urlsplit(options.shared_buffer_url).port or BUFFER_PORT)]}]


def _policy(job: Job, name: str, pods: Manifest, *, ingress: list[Any], egress: list[Any]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(job, f"{job.name}-{name}", "network"),
        "spec": {"podSelector": pods, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress},
    }


def _components(job: Job, names: tuple[str, ...]) -> Manifest:
    return {
        "matchLabels": {JOB_LABEL: job.name},
        "matchExpressions": [{"key": COMPONENT_LABEL, "operator": "In", "values": list(names)}],
    }


def _from_namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _callers(namespace: str) -> Manifest:
    """Those of the chart's pods that ask controllers: the operator, and the console."""
    components = [{"key": "app.kubernetes.io/component", "operator": "In", "values": ["operator", "console"]}]
    chart = {"matchLabels": {"app.kubernetes.io/name": "crescendo"}, "matchExpressions": components}
    return {**_from_namespace(namespace), "podSelector": chart}


def _prometheus() -> Manifest:
    return {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}}


def _tcp(port: int) -> Manifest:
    return {"port": port, "protocol": "TCP"}
