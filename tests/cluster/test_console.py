"""The cluster's console with real tokens: what a person may see is what the API server lets them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.cluster.jobs import quickstart
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.kube.processes import free_port

pytestmark = pytest.mark.timeout(600)
READERS = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "rljob-reader"},
    "rules": [
        {"apiGroups": ["rl.crescendo.dev"], "resources": ["rljobs"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
    ],
}


@pytest.fixture
def console(control_plane: ControlPlane, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": str(control_plane.admin)}
    with (tmp_path / "console.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "crescendo.console.cluster", "--host", "127.0.0.1", "--port", str(port), "--verbs"],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"{url}/healthz", timeout=2).status_code == 200:
                break
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, (tmp_path / "console.log").read_text()
        time.sleep(0.2)
    yield url
    child.terminate()
    child.wait(15)


def token_of(plane: ControlPlane, name: str, namespace: str, *, role: str) -> str:
    """A service account of a namespace with a role in it, and its token."""
    plane.kubectl("create", "serviceaccount", name, "-n", namespace)
    if role:
        plane.apply(READERS)
        plane.kubectl(
            "create", "rolebinding", name, "-n", namespace, f"--clusterrole={role}",
            f"--serviceaccount={namespace}:{name}",
        )  # fmt: skip
    return plane.kubectl("create", "token", name, "-n", namespace).strip()


@contextmanager
def signed_in(url: str, token: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, follow_redirects=True, timeout=30, headers={"origin": url}) as client:
        answer = client.post("/login", data={"token": token})
        assert answer.status_code in (200, 403)
        yield client


def test_nobody_looks_without_a_token(console: str) -> None:
    answer = httpx.get(console, follow_redirects=True, timeout=30)
    assert "Kubernetes token" in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    answer = httpx.post(f"{console}/login", data={"token": "forged"}, headers={"origin": console}, timeout=30)
    assert answer.status_code == 403
    assert "does not know this token" in answer.text


def test_a_form_of_another_site_is_refused(console: str) -> None:
    answer = httpx.post(f"{console}/login", data={"token": "x"}, headers={"origin": "http://evil.example"}, timeout=30)
    assert answer.status_code == 403
    assert "another site" in answer.text


def test_a_reader_sees_the_jobs_of_the_namespace_and_may_not_change_them(
    control_plane: ControlPlane, namespace: str, console: str
) -> None:
    job = quickstart("math", namespace)
    job["metadata"]["annotations"] = {"note": "<script>alert(1)</script>"}
    control_plane.apply(job)
    with signed_in(console, token_of(control_plane, "reader", namespace, role="rljob-reader")) as person:
        listed = person.get("/", params={"namespace": namespace})
        assert f"{namespace}/math" in listed.text
        assert person.get("/").status_code == 403
        page = person.get(f"/jobs/{namespace}/math")
        assert page.status_code == 200
        assert "You may not see pods" in page.text
        assert "Conditions" in page.text
        refused = person.post(f"/jobs/{namespace}/math/suspend")
        assert refused.status_code == 403
    assert control_plane.get("rljob", "math", "-n", namespace)["spec"]["suspend"] is False


def test_who_may_edit_suspends_and_resumes(control_plane: ControlPlane, namespace: str, console: str) -> None:
    control_plane.apply(quickstart("math", namespace))
    admin = token_of(control_plane, "boss", namespace, role="")
    control_plane.kubectl(
        "create", "clusterrolebinding", f"boss-{namespace}", "--clusterrole=cluster-admin",
        f"--serviceaccount={namespace}:boss",
    )  # fmt: skip
    with signed_in(console, admin) as person:
        for verb, held in (("suspend", True), ("resume", False)):
            assert person.post(f"/jobs/{namespace}/math/{verb}").status_code == 200
            assert control_plane.get("rljob", "math", "-n", namespace)["spec"]["suspend"] is held


def test_a_stranger_is_told_so(control_plane: ControlPlane, namespace: str, console: str) -> None:
    with signed_in(console, token_of(control_plane, "stranger", namespace, role="")) as person:
        answer = person.get("/", params={"namespace": namespace})
    assert answer.status_code == 403
    assert "You may not see this" in answer.text
