"""The chart, rendered by real Helm: valid objects, Pod Security restricted, least privilege, clear refusals."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import helm_python
import kubernetes_validate
import pytest
import yaml

from tests.unit.chart.rendering import BASE, CHART, Manifest, merged, render

ROOT = Path(__file__).parents[3]
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "everything": {"valkey": {"enabled": True}, "monitoring": {"grafanaDashboard": {"enabled": True}}},
    "one-namespace": {"singleNamespace": True},
    "namespaced-installer": {"singleNamespace": True, "clusterObjects": False},
    "small": {"reward": {"enabled": False}, "console": {"enabled": False}, "networkPolicy": {"enabled": False}},
    "fixed-size": {"reward": {"autoscaling": {"enabled": False}}, "executor": {"autoscaling": {"enabled": False}}},
    "mirror": {"global": {"imageRegistry": "registry.example.com/mirror", "imagePullSecrets": ["pull"]}},
}


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["metadata"]["name"], manifest["spec"]
        elif manifest["kind"] in ("Deployment", "StatefulSet"):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def by_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


@pytest.fixture(params=sorted(VARIANTS), scope="module")
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(VARIANTS[request.param])


def test_helm_lint_finds_no_error() -> None:
    found = helm_python.lint(str(CHART), values=BASE, strict=True, namespace="crescendo-system")
    assert found["total_charts_linted"] == 1
    assert found["errors"] == []
    assert found["messages"] == []


def test_the_icon_is_the_consoles_mark() -> None:
    icon = yaml.safe_load((CHART / "Chart.yaml").read_text())["icon"]
    mark = (ROOT / "console/static/mark.svg").read_text()
    assert unquote(icon) == "data:image/svg+xml," + mark.strip().replace('"', "'")


def test_generated_files_are_fresh() -> None:
    ran = subprocess.run(
        [sys.executable, "helm/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_every_object_is_valid_and_named_once(manifests: list[Manifest]) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in manifests]
    assert len(set(names)) == len(names)
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.36", strict=True)


def test_everything_namespaced_is_in_the_release_namespace(manifests: list[Manifest]) -> None:
    cluster_wide = {
        "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }  # fmt: skip
    for manifest in manifests:
        if manifest["kind"] not in cluster_wide:
            assert manifest["metadata"]["namespace"] == "crescendo-system", manifest["metadata"]["name"]


def test_a_shared_buffer_elsewhere_is_administered_by_the_operator_alone() -> None:
    values = {"valkey": {"externalUrl": "rediss://redis.example.com:6380/0", "existingSecret": "redis-admin"}}
    found = render(values)
    operator = dict(pods(found))["crescendo-operator"]
    environment = {one["name"]: one.get("value") for one in operator["containers"][0]["env"]}
    assert environment["CRESCENDO_SHARED_BUFFER_URL"] == values["valkey"]["externalUrl"]
    assert environment["CRESCENDO_SHARED_BUFFER_PREFIX"] == "crescendo"
    mounting = {name for name, pod in pods(found) if "redis-admin" in str(pod)}
    assert mounting == {"crescendo-operator"}
    (policy,) = [one for one in by_kind(found, "NetworkPolicy") if one["metadata"]["name"] == "crescendo-operator"]
    assert {"ports": [{"port": 6380, "protocol": "TCP"}]} in policy["spec"]["egress"]
    for wrong, says in (({"existingSecret": ""}, "existingSecret"), ({"enabled": True}, "exclude each other")):
        with pytest.raises(Exception, match=says):
            render(merged(values, {"valkey": wrong}))


def test_every_pod_passes_pod_security_restricted(manifests: list[Manifest]) -> None:
    for name, pod in pods(manifests):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] != 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert own["readOnlyRootFilesystem"] is True, name
        for volume in pod.get("volumes", ()):
            assert set(volume) & {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}, name


def test_only_operator_and_console_carry_a_token(manifests: list[Manifest]) -> None:
    carrying = {name for name, pod in pods(manifests) if pod["automountServiceAccountToken"]}
    assert carrying <= {"crescendo-operator", "crescendo-console"}


def test_pods_without_gpus_see_none(manifests: list[Manifest]) -> None:
    for name, pod in pods(manifests):
        for container in pod["containers"]:
            assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"], name


def test_every_container_has_limits_and_no_image_is_latest(manifests: list[Manifest]) -> None:
    for name, pod in pods(manifests):
        for container in pod["containers"]:
            assert set(container["resources"]) == {"requests", "limits"}, name
            assert not container["image"].endswith(":latest"), name
            assert ":" in container["image"] or "@" in container["image"], name


def test_the_executor_holds_nothing_and_reaches_nobody() -> None:
    manifests = render({})
    pod = dict(pods(manifests))["crescendo-executor"]
    assert not any("secret" in volume for volume in pod["volumes"])
    assert {entry["name"] for entry in pod["containers"][0]["env"]} == {"HOME", "NVIDIA_VISIBLE_DEVICES"}
    (policy,) = [one for one in by_kind(manifests, "NetworkPolicy") if one["metadata"]["name"] == "crescendo-executor"]
    assert policy["spec"]["egress"] == []
    assert "Egress" in policy["spec"]["policyTypes"]


def test_rights_are_named_one_by_one(manifests: list[Manifest]) -> None:
    for role in by_kind(manifests, "ClusterRole") + by_kind(manifests, "Role"):
        for rule in role["rules"]:
            for words in (rule["apiGroups"], rule["resources"], rule["verbs"]):
                assert "*" not in words, role["metadata"]["name"]
            if "secrets" in rule["resources"]:
                assert not {"list", "watch", "delete"} & set(rule["verbs"]), role["metadata"]["name"]


def cluster_wide(values: dict[str, Any]) -> list[tuple[str, str]]:
    found = [one for one in render(values) if "namespace" not in one["metadata"]]
    return sorted((one["kind"], one["metadata"]["name"]) for one in found)


def test_one_namespace_has_little_beyond_it_and_nothing_where_the_installer_may_not() -> None:
    assert cluster_wide({"singleNamespace": True}) == [
        ("ClusterRole", "crescendo-system-crescendo-console-reviews"),
        ("ClusterRoleBinding", "crescendo-system-crescendo-console-reviews"),
        ("CustomResourceDefinition", "rljobs.rl.crescendo.dev"),
        ("ValidatingAdmissionPolicy", "crescendo-system-crescendo-verbs"),
        ("ValidatingAdmissionPolicyBinding", "crescendo-system-crescendo-verbs"),
    ]
    everything = {"valkey": {"enabled": True}, "rdma": {"enabled": True}}
    assert cluster_wide({"singleNamespace": True, "clusterObjects": False, **everything}) == []


def test_verbs_are_taken_where_somebody_reviews_who_asks() -> None:
    def reviewed(**values: Any) -> str:
        (container,) = dict(pods(render(values)))["crescendo-operator"]["containers"]
        return next(str(one["value"]) for one in container["env"] if one["name"] == "CRESCENDO_VERBS_REVIEWED")

    alone = {"singleNamespace": True, "clusterObjects": False}
    assert reviewed() == reviewed(singleNamespace=True) == "true"
    assert reviewed(**alone) == "false"
    assert reviewed(**alone, verbs={"policyInstalled": True}) == "true"


def test_a_mirror_serves_every_image() -> None:
    for name, pod in pods(render(VARIANTS["mirror"])):
        assert pod["imagePullSecrets"] == [{"name": "pull"}], name
        assert pod["containers"][0]["image"].startswith("registry.example.com/mirror/crescendo/"), name


def test_a_one_replica_operator_has_no_disruption_budget(manifests: list[Manifest]) -> None:
    budgets = {one["metadata"]["name"] for one in by_kind(manifests, "PodDisruptionBudget")}
    assert "crescendo-operator" not in budgets


def test_a_drain_fits_into_the_grace_period() -> None:
    for component, name in itertools.product(("reward", "executor"), ("crescendo-{}",)):
        pod = dict(pods(render({component: {"drainSeconds": 100}})))[name.format(component)]
        assert pod["terminationGracePeriodSeconds"] > 100


def test_the_definition_stays_at_uninstall() -> None:
    (crd,) = by_kind(render({}), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert by_kind(render({"crds": {"enabled": False}}), "CustomResourceDefinition") == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kuberay": {"required": True}}, "KubeRay is not installed"),
        ({"kuberayOperator": {"enabled": True}}, "carries no KubeRay"),
        ({"clusterObjects": False}, "needs singleNamespace=true"),
        ({"executor": {"acceptSharedKernel": False}}, "acceptSharedKernel=true"),
        ({"operator": {"certificateIssuer": "vault"}}, "no cert-manager.io/v1"),
        ({"operator": {"trustDays": 0}}, "trustDays"),
        ({"consle": {}}, "consle"),
        ({"reward": {"replicas": "two"}}, "replicas"),
        ({"executor": {"image": {"digest": "sha256:short"}}}, "digest"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_installed_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        render(values)


def test_helm_test_tries_each_part_that_is_there() -> None:
    def tried(values: dict[str, Any]) -> set[str]:
        hooks = [one for one in render(values) if one["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"]
        return {one["metadata"]["name"].removeprefix("crescendo-test-") for one in hooks}

    assert tried(VARIANTS["everything"]) == {"operator", "console", "reward", "valkey"}
    assert tried(VARIANTS["small"]) == {"operator"}


@pytest.mark.parametrize("name", ["operator", "reward"])
def test_what_helm_test_runs_takes_its_arguments(name: str) -> None:
    (container,) = dict(pods(render({"operator": {"resyncSeconds": 45}})))[f"crescendo-test-{name}"]["containers"]
    python, *command = container["command"]
    assert (python, command[0]) == ("python", "-m")
    ran = subprocess.run(
        [sys.executable, *command, "--help"], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ("45" in command) == (name == "operator")


def test_a_runtime_class_is_boundary_enough() -> None:
    pod = dict(pods(render({"executor": {"acceptSharedKernel": False, "runtimeClassName": "gvisor"}})))
    assert pod["crescendo-executor"]["runtimeClassName"] == "gvisor"
