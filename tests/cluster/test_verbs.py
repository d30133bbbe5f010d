"""Who may ask a run for a transient verb: the chart's admission policy on a real API server."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.jobs import JobView, quickstart
from tests.cluster.kube.control_plane import ControlPlane, KubectlError
from tests.unit.chart.rendering import render

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[2]
REQUEST = "rl.crescendo.dev/request"


@pytest.fixture(scope="module")
def policy(control_plane: ControlPlane) -> None:
    for manifest in render({}):
        if manifest["kind"].startswith("ValidatingAdmissionPolicy"):
            control_plane.apply(manifest)


def may(plane: ControlPlane, namespace: str, user: str, *resources: str) -> None:
    """Lets a user patch RLJobs and update these virtual subresources of theirs."""
    rules: list[dict[str, Any]] = [
        {"apiGroups": ["rl.crescendo.dev"], "resources": ["rljobs"], "verbs": ["get", "patch"]}
    ]
    if resources:
        rules.append({"apiGroups": ["rl.crescendo.dev"], "resources": list(resources), "verbs": ["update"]})
    api = "rbac.authorization.k8s.io"
    plane.apply(
        {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": {"name": user, "namespace": namespace}, "rules": rules}
    )
    plane.apply(
        {
            "apiVersion": f"{api}/v1", "kind": "RoleBinding", "metadata": {"name": user, "namespace": namespace},
            "roleRef": {"apiGroup": api, "kind": "Role", "name": user},
            "subjects": [{"kind": "User", "name": user, "apiGroup": api}],
        }
    )  # fmt: skip


def ask(plane: ControlPlane, namespace: str, user: str, wish: str) -> str:
    """What the API server says to a user's wish; empty when it takes it."""
    return change(plane, namespace, user, {"annotations": {REQUEST: wish}})


def change(plane: ControlPlane, namespace: str, user: str, metadata: dict[str, Any]) -> str:
    patch = json.dumps({"metadata": metadata})
    line = ("patch", "rljob", "math", "-n", namespace, "--type=merge", "-p", patch)
    try:
        plane.kubectl(*line, kubeconfig=plane.user(user))
    except KubectlError as error:
        return str(error)
    return ""


def test_a_verb_needs_the_right_to_it_and_the_refusal_names_the_rule(
    control_plane: ControlPlane, policy: None, namespace: str, eventually: Callable[..., None]
) -> None:
    control_plane.apply(quickstart("math", namespace))
    may(control_plane, namespace, "ann", "rljobs/pause", "rljobs/unpause")
    may(control_plane, namespace, "bob")
    # The API server takes a moment to see a new policy; a wish that it took before is no new one.
    words = itertools.count()
    eventually("bob is refused", lambda: ask(control_plane, namespace, "bob", f"pause a{next(words)}") != "", 60)
    said = ask(control_plane, namespace, "bob", "pause 2")
    assert "bob may not pause runs" in said
    assert "resources: [rljobs/pause], verbs: [update]" in said
    assert ask(control_plane, namespace, "ann", "pause 3") == ""
    assert JobView(control_plane, "math", namespace).body()["metadata"]["annotations"][REQUEST] == "pause 3"
    assert "may not quarantine runs" in ask(control_plane, namespace, "ann", "quarantine:rollout-1 4")
    assert "a space and a new word" in ask(control_plane, namespace, "ann", "pause")
    # A change of something else beside an old wish is none of the policy's business.
    assert change(control_plane, namespace, "bob", {"labels": {"team": "math"}}) == ""


def test_the_command_says_what_is_missing(control_plane: ControlPlane, policy: None, namespace: str) -> None:
    control_plane.apply(quickstart("math", namespace))
    line = [sys.executable, "-m", "crescendo.cli.main", "pause", "math", "--cluster", "-n", namespace]
    line += ["--kubeconfig", str(control_plane.admin)]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert ran.returncode == 2
    assert "does not run" in ran.stderr
