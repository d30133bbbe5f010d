"""The chart's NetworkPolicies, by component. Whether they hold: tests/cluster/node/test_policies.py."""

from typing import Any

import pytest

from tests.unit.chart.rendering import Manifest, render

COMPONENTS = ("operator", "console", "reward", "executor", "valkey", "test")


def policies(component: str, **values: Any) -> list[Manifest]:
    """Specs of the policies that select a component's pods."""
    found = [one["spec"] for one in render(values) if one["kind"] == "NetworkPolicy"]
    return [spec for spec in found if selects(spec["podSelector"], component)]


def selects(selector: Manifest, component: str) -> bool:
    """Whether a pod selector of the release takes a component's pods."""
    named = selector["matchLabels"].get("app.kubernetes.io/component")
    listed = [one["values"] for one in selector.get("matchExpressions", ())]
    return named in (None, component) and all(component in values for values in listed)


def rules(component: str, way: str, **values: Any) -> list[Manifest]:
    """What the policies of a component's pods allow, together."""
    return [rule for spec in policies(component, **values) for rule in spec.get(way, ())]


@pytest.mark.parametrize("component", COMPONENTS)
def test_everything_is_denied_first(component: str) -> None:
    denying = {"policyTypes": ["Ingress", "Egress"]}
    found = [{key: value for key, value in spec.items() if key != "podSelector"} for spec in policies(component)]
    assert denying in found


@pytest.mark.parametrize(
    ("component", "ports"), [("console", [8080]), ("operator", []), ("executor", []), ("test", [])]
)
def test_only_the_console_is_open_to_everybody(component: str, ports: list[int]) -> None:
    anybody = [rule for rule in rules(component, "ingress") if "from" not in rule]
    assert [port["port"] for rule in anybody for port in rule["ports"]] == ports


def test_the_executor_gets_nowhere() -> None:
    assert rules("executor", "egress") == []


@pytest.mark.parametrize("component", ["operator", "console"])
@pytest.mark.parametrize(("values", "ports"), [({}, [443, 6443]), ({"apiServerPorts": [16443]}, [16443])])
def test_the_api_servers_ports_are_the_only_ones_open_to_any_address(
    component: str, values: dict[str, Any], ports: list[int]
) -> None:
    anywhere = [rule["ports"] for rule in rules(component, "egress", networkPolicy=values) if "to" not in rule]
    names = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    assert anywhere == [names, [{"port": port, "protocol": "TCP"} for port in ports]]


def test_helms_tests_get_to_every_service_of_their_release() -> None:
    release = {"app.kubernetes.io/name": "crescendo", "app.kubernetes.io/instance": "crescendo"}
    assert {"to": [{"podSelector": {"matchLabels": release}}]} in rules("test", "egress")


def test_the_operators_metrics_are_for_prometheus_and_helms_test() -> None:
    (allowed,) = [spec for spec in policies("operator") if spec.get("ingress")]
    sources = [peer["podSelector"]["matchLabels"] for rule in allowed["ingress"] for peer in rule["from"]]
    assert [one.get("app.kubernetes.io/component", one["app.kubernetes.io/name"]) for one in sources] == [
        "test",
        "prometheus",
    ]
    assert {port["port"] for rule in allowed["ingress"] for port in rule["ports"]} == {9464}


def test_without_a_console_no_port_is_open_for_it() -> None:
    assert rules("console", "ingress", console={"enabled": False}) == []
