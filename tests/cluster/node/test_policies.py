"""Who reaches which port of a running job and of the chart's services, tried from pods, with the policies enforced.

Every port that a job's pods listen on is tried, also those that Ray picks. What is refused here connects under a policy
that allows everything: so it is the policies that refuse, and the probe can tell.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.jobs import JobView
from tests.cluster.kube.node import ADDRESS, Node
from tests.cluster.node.diagnosis import diagnosis
from tests.cluster.node.installed import KUBERAY_NAMESPACE, NAMESPACE, Stopwatch
from tests.cluster.node.probes import Pod, allow_all, listening, probe_pod, reached
from tests.cluster.node.short_job import short_job, volumes

NAME = "guarded"
NEVER = 100_000
RUNNING_S = 300.0
SETTLED_S = 20.0
ELSEWHERE = "elsewhere"
CHART = {"operator": (8080, 9464), "console": (8080,), "reward": (8446, 9464), "executor": (8447, 9464)}
METRICS = ("operator", "reward", "executor")
RAY = ("head", "worker", "rollout")
OUTSIDE = {"api": "10.96.0.1:443", "names": f"{ADDRESS}:53"}
ANYBODY = {*OUTSIDE, "console:8080"}
Eventually = Callable[..., None]


class Scene:
    """The job, the pods that try, and what they try: `targets` has an address by "component:port"."""

    def __init__(self, node: Node, team: str) -> None:
        self.node = node
        self.job = JobView(node, NAME, team)
        self.pods: dict[str, Pod] = {}
        self.targets = dict(OUTSIDE)

    def probes(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Namespace and labels of the pods that only try."""
        return {
            "stranger": (ELSEWHERE, {}),
            "neighbour": (self.job.namespace, {}),
            "another-job": (
                self.job.namespace,
                {"rl.crescendo.dev/job": "other", "rl.crescendo.dev/component": "head"},
            ),
            "bystander": (NAMESPACE, {}),
            "kuberay": (KUBERAY_NAMESPACE, {}),
            "prometheus": (ELSEWHERE, {"app.kubernetes.io/name": "prometheus"}),
        }

    def look(self) -> None:
        """Finds pods and ports, once everything runs."""
        for name, (namespace, _) in self.probes().items():
            self.pods[name] = Pod.found(self.node, namespace, f"probe={name}")
        for name in (*RAY, "buffer"):
            labels = f"rl.crescendo.dev/job={NAME},rl.crescendo.dev/component={name}"
            self.pods[name] = Pod.found(self.node, self.job.namespace, labels)
            self._add(name, *listening(self.node, self.pods[name]))
        for name, ports in CHART.items():
            self.pods[name] = Pod.found(self.node, NAMESPACE, f"app.kubernetes.io/component={name}")
            self._add(name, *ports)

    def of(self, *components: str) -> set[str]:
        """Targets of these components."""
        return {name for name in self.targets if name.split(":")[0] in components}

    def reached(self, source: str) -> set[str]:
        """Targets that a pod connects to, but its own, which no policy concerns."""
        others = set(self.targets) - self.of(source)
        connected = reached(self.node, self.pods[source], [self.targets[name] for name in sorted(others)])
        return {name for name in others if self.targets[name] in connected}

    def may(self, source: str) -> set[str]:
        """What a pod is to reach."""
        own = self.of(*RAY) | {"buffer:6379", "names", "console:8080"}
        found = {
            "stranger": ANYBODY,
            "neighbour": ANYBODY,
            "another-job": ANYBODY | {"reward:8446"},  # a head, of whatever job
            "bystander": ANYBODY,
            "kuberay": ANYBODY | {"head:8265"},
            "prometheus": ANYBODY | {f"{name}:9464" for name in METRICS} | {f"{name}:8080" for name in RAY},
            "head": own | {"reward:8446"},
            "worker": own,
            "rollout": own,
            "buffer": {"names"},
            "operator": {*OUTSIDE, "head:8444"},
            "console": {*OUTSIDE, "head:8444"},
            "reward": {"names", "executor:8447"},
            "executor": set(),
        }
        return found[source] - self.of(source)

    def settles(self, eventually: Eventually, source: str, expected: set[str]) -> None:
        """Checks what a pod reaches, within some seconds after policies or pods have changed."""
        try:
            eventually(source, lambda: self.reached(source) == expected, SETTLED_S)
        except pytest.fail.Exception:
            assert self.reached(source) == expected

    def _add(self, name: str, *ports: int) -> None:
        self.targets |= {f"{name}:{port}": f"{self.pods[name].address}:{port}" for port in ports}


@pytest.fixture(scope="module")
def scene(node: Node, team: str, volume_folder: Path) -> Iterator[Scene]:
    found = Scene(node, team)
    node.kubectl("create", "namespace", ELSEWHERE)
    items = volumes(NAME, team, volume_folder)
    for name, (namespace, labels) in found.probes().items():
        items.append(probe_pod(f"probe-{name}", namespace, {"probe": name, **labels}))
    node.apply({"apiVersion": "v1", "kind": "List", "items": items})
    job = short_job(NAME, team, volume_folder, disaggregated=True)
    rl = job["spec"]["run"]["steps"].pop()["rl"]
    for stage in rl["stages"]:
        stage["maxIterations"] = stage["gate"]["iterations"] = NEVER
    job["spec"]["run"]["steps"] = [{"rl": rl}]
    node.apply(job)
    yield found
    for name, (namespace, _) in found.probes().items():
        node.kubectl("delete", "pod", f"probe-{name}", "-n", namespace, "--grace-period=0", "--force")


def test_a_job_runs_behind_its_policies(scene: Scene, watch: Stopwatch, eventually: Eventually) -> None:
    try:
        with watch.step("guarded job submitted to Running"):
            eventually("it runs", lambda: scene.job.phase == "Running", RUNNING_S)
    except BaseException:
        print(diagnosis(scene.node, scene.job))
        raise
    scene.look()
    assert {"head:6379", "head:8265", "head:8444", "buffer:6379"} <= set(scene.targets)
    assert len(scene.of("worker")) > 1  # Ray's own, and the service's


@pytest.mark.parametrize("source", ["head", "worker", "rollout", "buffer", "operator", "console", "reward", "executor"])
def test_pods_of_ours_reach_what_they_need_and_nothing_else(scene: Scene, eventually: Eventually, source: str) -> None:
    scene.settles(eventually, source, scene.may(source))


@pytest.mark.parametrize("source", ["stranger", "neighbour", "another-job", "bystander", "kuberay", "prometheus"])
def test_others_reach_what_is_meant_for_them_and_nothing_else(
    scene: Scene, eventually: Eventually, source: str
) -> None:
    scene.settles(eventually, source, scene.may(source))


def test_it_is_the_policies_that_refuse(scene: Scene, eventually: Eventually) -> None:
    namespaces = (scene.job.namespace, NAMESPACE)
    for namespace in namespaces:
        scene.node.apply(allow_all(namespace))
    for source in ("stranger", "executor", "buffer"):
        scene.settles(eventually, source, set(scene.targets) - scene.of(source))
    for namespace in namespaces:
        scene.node.kubectl("delete", "networkpolicy", "allow-all", "-n", namespace)
    for source in ("stranger", "executor", "buffer"):
        scene.settles(eventually, source, scene.may(source))


def test_policies_go_with_their_job(scene: Scene, watch: Stopwatch, eventually: Eventually) -> None:
    node, namespace = scene.node, scene.job.namespace
    policies = ("get", "networkpolicies", "-n", namespace, "-o", "name")
    names = {f"networkpolicy.networking.k8s.io/{NAME}-{part}" for part in ("deny", "ray", "buffer")}
    assert names <= set(node.kubectl(*policies).split())
    with watch.step("guarded job deleted"):
        node.kubectl("delete", "rljob", NAME, "-n", namespace, "--timeout=60s")
        eventually("they are gone", lambda: not names & set(node.kubectl(*policies).split()))
