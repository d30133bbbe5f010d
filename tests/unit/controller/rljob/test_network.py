"""Who a job's NetworkPolicies let in. Whether they hold: tests/cluster/node/test_policies.py."""

from crescendo.controller.operator.children.network import policies
from crescendo.controller.operator.options import Options
from tests.unit.controller.rljob.test_render import job

OPTIONS = Options(namespace="platform", kuberay_namespace="ray-system")


def test_everything_is_denied_first() -> None:
    (deny, *_) = policies(job(), OPTIONS)
    assert deny["spec"]["podSelector"] == {"matchLabels": {"rl.crescendo.dev/job": "math"}}
    assert deny["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert deny["spec"]["ingress"] == []


def test_of_the_platform_only_operator_and_console_come_in_and_only_to_the_controller() -> None:
    rules = policies(job(), OPTIONS)[1]["spec"]["ingress"]
    (rule,) = [rule for rule in rules if "platform" in str(rule)]
    assert rule["ports"] == [{"port": 8444, "protocol": "TCP"}]
    (caller,) = rule["from"]
    (components,) = caller["podSelector"]["matchExpressions"]
    assert components["values"] == ["operator", "console"]


def test_kuberay_reaches_the_dashboard_and_prometheus_rays_metrics() -> None:
    rules = policies(job(), OPTIONS)[1]["spec"]["ingress"]
    ports = {who: [rule["ports"] for rule in rules if who in str(rule)] for who in ("ray-system", "prometheus")}
    assert ports == {
        "ray-system": [[{"port": 8265, "protocol": "TCP"}]],
        "prometheus": [[{"port": 8080, "protocol": "TCP"}]],
    }
