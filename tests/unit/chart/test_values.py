"""Every value of the chart does something, and a wrong one is refused by its name."""

import re
from collections.abc import Iterator
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from crescendo.reward_service.sandbox.options import Floor
from crescendo.reward_service.service_options import ServiceOptions
from tests.unit.chart.rendering import CHART, merged, render, render_files

APIS = ("monitoring.coreos.com/v1", "cert-manager.io/v1")
ALL: dict[str, Any] = {
    "valkey": {"enabled": True},
    "rdma": {"enabled": True},
    "monitoring": {name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule", "grafanaDashboard")},
}
# Values that only decide what is refused, or count where another is off: each with what else is to be set.
UNDER: dict[str, dict[str, Any]] = {
    "reward.replicas": {"reward": {"autoscaling": {"enabled": False}}},
    "executor.replicas": {"executor": {"autoscaling": {"enabled": False}}},
    "valkey.externalUrl": {"valkey": {"enabled": False, "existingSecret": "admin"}},
    "clusterObjects": {"singleNamespace": True},
    "verbs.policyInstalled": {"singleNamespace": True, "clusterObjects": False},
}
REFUSE_ONLY = {"kuberay.required", "kuberayOperator.enabled", "executor.acceptSharedKernel"}
OTHER: dict[str, Any] = {
    "cpu": "7", "memory": "7Gi", "size": "7Gi", "maxMemory": "9gb", "boundary": "gvisor", "jail": "runsc",
    "pullPolicy": "Always", "type": "NodePort", "digest": "sha256:" + "a" * 64, "externalUrl": "redis://elsewhere:1/0",
    "tolerations": [{"key": "x", "operator": "Exists"}], "imagePullSecrets": ["pull"], "nodeSelector": {"a": "b"},
    "apiServerPorts": [16443],
    "affinity": {"nodeAffinity": {}}, "labels": {"team": "x"}, "models": {"judge": {"url": "x"}},
}  # fmt: skip


def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(values, dict) and values and path[-1:] != ("labels",):
        for name, child in values.items():
            yield from leaves(child, (*path, name))
    else:
        yield path


def at(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return dict(value)


def rendered(values: dict[str, Any]) -> dict[str, str]:
    """Without what is drawn by chance, and without checksums of values, which make every value look used."""
    files = render_files(merged(ALL, values), APIS)
    drawn = re.compile(r"(checksum/|password:).*")
    return {name: drawn.sub("", text) for name, text in files.items() if not name.endswith("NOTES.txt")}


def test_every_value_is_used() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    paths = [path for path in leaves(values) if ".".join(path) not in REFUSE_ONLY]
    assert len(paths) > 80
    unused, usual = [], rendered({})
    for path in paths:
        under = UNDER.get(".".join(path), {})
        present = merged(merged(values, ALL), under)
        for name in path:
            present = present[name]
        changed = not present if isinstance(present, bool) else present + 3 if isinstance(present, int) else None
        over = at(path, OTHER.get(path[-1], "zz") if changed is None else changed)
        if rendered(merged(under, over)) == (rendered(under) if under else usual):
            unused.append(".".join(path))
    assert unused == []


def test_programs_run_no_weaker_than_the_floor() -> None:
    for given, floor in (
        ({}, "shared-kernel/landlock"),
        ({"boundary": "gvisor"}, "gvisor/landlock"),
        ({"boundary": "kata", "jail": "runsc"}, "kata/runsc"),
    ):
        objects = render({"executor": {"sandboxFloor": given}})
        (config,) = [one for one in objects if one["kind"] == "ConfigMap" and "executor" in one["metadata"]["name"]]
        options = ServiceOptions.parse(yaml.safe_load(config["data"]["spec.json"])["options"])
        assert options.listen.sandbox_floor == floor
        assert str(Floor.parse(options.listen.sandbox_floor)) == floor


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward": {"autoscaling": {"minReplicas": 9, "maxReplicas": 2}}}, "minReplicas is 9, more than maxReplicas"),
        ({"global": {"imageRegistry": "https://registry.example.com"}}, "imageRegistry"),
        ({"valkey": {"storage": {"size": "50 GB"}}}, "size"),
        ({"valkey": {"externalUrl": "http://redis", "existingSecret": "a"}}, "externalUrl"),
        ({"operator": {"resources": {"limit": {}}}}, "limit"),
        ({"executor": {"sandboxFloor": {"jail": "process"}}}, "jail"),
        ({"networkPolicy": {"apiServerPorts": [70000]}}, "apiServerPorts"),
        ({"networkPolicy": {"apiServerPorts": []}}, "apiServerPorts"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_a_wrong_value_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        render(values)


def test_a_name_that_looks_like_a_number_stays_a_name() -> None:
    named = {part: {"priorityClassName": "1"} for part in ("operator", "console", "reward", "executor")}
    values = merged(named, {"global": {"imagePullSecrets": ["1"]}, "reward": {"secretName": "1"}})
    values = merged(values, {"executor": {"runtimeClassName": "1"}})
    values = merged(values, {"valkey": {"enabled": True, "existingSecret": "1", "storage": {"className": "1"}}})
    objects = [one for one in render(values) if one["kind"] in ("Deployment", "StatefulSet", "Pod")]
    for manifest in objects:
        kubernetes_validate.validate(manifest, "1.31", strict=True)
    assert len(objects) == 9


def test_quantities_may_be_numbers_and_any_resource() -> None:
    amounts = {"cpu": 2, "memory": "1Gi", "ephemeral-storage": "1Gi"}
    objects = render({"operator": {"resources": {"requests": amounts, "limits": amounts}}})
    (operator,) = [one for one in objects if one["kind"] == "Deployment" and "operator" in one["metadata"]["name"]]
    assert operator["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] == amounts
