"""The cluster's console with real tokens, in Chromium: what a person may see and do is what the API server lets them.

Two people: one may look, one may act. The operator carries wishes to a stub of the run's controller; the console asks
the same stub for curves, with a certificate of its own role.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.cluster.conftest import cannot
from tests.cluster.controller_stub import StubController, write_identity
from tests.cluster.jobs import JobView, quickstart, volumes
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.kube.processes import free_port
from tests.cluster.operator_process import Operator

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[2]
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-dev-shm-usage"]  # fmt: skip
GROUP = "rl.crescendo.dev"
LOOK = [
    {"apiGroups": [GROUP], "resources": ["rljobs"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
]
ACT = [
    {"apiGroups": [GROUP], "resources": ["rljobs"], "verbs": ["patch"]},
    {"apiGroups": [GROUP], "resources": ["rljobs/pause", "rljobs/unpause"], "verbs": ["update"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
]
Eventually = Callable[..., None]


@contextmanager
def served(plane: ControlPlane, folder: Path, controllers: str, *options: str) -> Iterator[str]:
    """A console as a process; its address."""
    port, log = free_port(), folder / f"console{''.join(options)}.log"
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "KUBECONFIG": str(plane.admin), "CONTROLLERS": controllers,
        **write_identity(plane, folder / f"identity{''.join(options)}", "console"),
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.cluster.redirected_console", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as sink:
        child = subprocess.Popen([*command, *options], env=environment, cwd=ROOT, stdout=sink, stderr=sink)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _healthy(url):
            assert time.monotonic() < deadline, log.read_text()
            assert child.poll() is None, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        child.terminate()
        child.wait(15)
        said = log.read_text()
    assert "eyJ" not in said, "no token is logged"


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def token_of(plane: ControlPlane, namespace: str, name: str, *rules: dict[str, list[str]]) -> str:
    """A service account of a namespace with these rights in it, and its token."""
    plane.kubectl("create", "serviceaccount", name, "-n", namespace)
    about, api = {"name": name, "namespace": namespace}, "rbac.authorization.k8s.io"
    plane.apply({"apiVersion": f"{api}/v1", "kind": "Role", "metadata": about, "rules": list(rules)})
    plane.kubectl(
        "create", "rolebinding", name, "-n", namespace, f"--role={name}", f"--serviceaccount={namespace}:{name}"
    )
    return plane.kubectl("create", "token", name, "-n", namespace).strip()


@contextmanager
def signed_in(url: str, token: str) -> Iterator[httpx.Client]:
    """A session without a browser."""
    with httpx.Client(base_url=url, follow_redirects=True, timeout=30, headers={"origin": url}) as client:
        assert client.post("/login", data={"token": token}).status_code in (200, 403)
        yield client


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; while it is there, its event loop is the thread's, so certificates are made before."""
    if not CHROMIUM.exists():
        cannot(f"{CHROMIUM} is missing: install Chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def running(
    control_plane: ControlPlane, controller: StubController, namespace: str, tmp_path: Path, eventually: Eventually
) -> Iterator[JobView]:
    """A job that runs, with an operator that carries wishes to its controller."""
    operator = Operator(control_plane.admin, tmp_path, [namespace], controllers=controller.address)
    operator.start()
    volumes(control_plane, namespace)
    control_plane.apply(quickstart("math", namespace))
    job = JobView(control_plane, "math", namespace)
    try:
        eventually("math has an attempt", lambda: job.children("rayjob") == ["math-1"], 60)
        job.kuberay_says(1, jobDeploymentStatus="Running", jobStatus="RUNNING")
        eventually("math runs", lambda: job.phase == "Running", 60)
        yield job
    finally:
        operator.kill()
        print(operator.log[-3000:])


def enter(browser: Browser, url: str, token: str) -> tuple[Page, list[str]]:
    """A page of a new session, and what its console complains of."""
    page, complaints = browser.new_context().new_page(), []
    page.set_default_timeout(20_000)
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.goto(url)
    page.get_by_label("Kubernetes token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    return page, complaints


def press(page: Page, action: str, choice: str = "") -> None:
    """An action with its second step."""
    page.get_by_role("link", name=action, exact=True).click()
    if choice:
        page.get_by_label("Stage").select_option(choice)
    page.get_by_role("button", name=f"{action} math").click()


def test_who_may_act_acts_in_a_browser_and_sees_the_answer(
    control_plane: ControlPlane, controller: StubController, running: JobView, tmp_path: Path, eventually: Eventually
) -> None:
    space = running.namespace
    token = token_of(control_plane, space, "boss", *LOOK, *ACT)
    with served(control_plane, tmp_path, controller.address, "--actions") as url, chromium() as browser:
        page, complaints = enter(browser, url, token)
        expect(page).to_have_url(f"{url}/?namespace={space}")
        expect(page.get_by_role("region", name="Jobs")).to_contain_text("1/3")
        page.get_by_role("link", name="math").click()
        expect(page.get_by_role("img", name="Reward by iteration")).to_be_visible()
        expect(page.locator("#run-title + ol")).to_contain_text("stage.entered")
        expect(page.get_by_text("<script>alert(1)</script>four")).to_be_visible()
        expect(page.get_by_role("region", name="Pods")).to_contain_text("head", timeout=30_000)  # KubeRay makes it
        expect(page.get_by_role("link", name="Drain", exact=True)).to_have_count(0)

        press(page, "Pause")
        expect(page.get_by_text("Last request: pause, taken")).to_be_visible()
        assert controller.run.verbs == ["pause"]
        expect(page.get_by_role("link", name="Go on", exact=True)).to_be_visible()

        press(page, "Promote", "context-64")
        expect(page.get_by_text("Asked for: promotion to context-64")).to_be_visible()
        eventually("it is promoted", lambda: running.status().get("promotedTo") == "context-64", 30)
        assert "promote context-64" in controller.run.verbs

        press(page, "Suspend")
        expect(page.locator(".pill").first).to_have_text("Suspended", timeout=60_000)
        expect(page.get_by_role("link", name="Resume", exact=True)).to_be_visible()
        assert "token" not in page.url
    assert complaints == []


def test_who_may_look_looks_and_is_refused_the_rest(
    control_plane: ControlPlane, controller: StubController, namespace: str, tmp_path: Path
) -> None:
    job = quickstart("math", namespace)
    job["metadata"]["annotations"] = {"note": "<script>alert(1)</script>"}
    control_plane.apply(job)
    uid = control_plane.get("rljob", "math", "-n", namespace)["metadata"]["uid"]
    token = token_of(control_plane, namespace, "reader", *LOOK)
    with served(control_plane, tmp_path, controller.address, "--actions") as url, chromium() as browser:
        page, _ = enter(browser, url, token)
        page.get_by_role("link", name="math").click()
        expect(page.get_by_text("You may not see pods")).to_be_visible()
        expect(page.get_by_text("None: the operator has not seen this job")).to_be_visible()
        assert page.locator("a[href*='/actions/']").count() == 0
        with signed_in(url, token) as person:
            assert person.get("/").status_code == 403
            path = f"/jobs/{namespace}/math/actions/suspend"
            refused = person.get(path)
            assert refused.status_code == 403
            assert "patch on rljobs" in refused.text
            forged = person.post(path, data={"uid": uid, "word": "0a1b2c3d", "proof": "0" * 64})
            assert forged.status_code == 403
            assert "not of your session" in forged.text
    assert control_plane.get("rljob", "math", "-n", namespace)["spec"]["suspend"] is False


def test_a_form_for_an_earlier_job_of_the_name_changes_nothing(
    control_plane: ControlPlane, controller: StubController, namespace: str, tmp_path: Path
) -> None:
    control_plane.apply(quickstart("math", namespace))
    token = token_of(control_plane, namespace, "boss", *LOOK, *ACT)
    with served(control_plane, tmp_path, controller.address, "--actions") as url, signed_in(url, token) as person:
        path = f"/jobs/{namespace}/math/actions/suspend"
        form = dict(_hidden(person.get(path).text))
        control_plane.kubectl("delete", "rljob", "math", "-n", namespace, "--timeout=60s")
        control_plane.apply(quickstart("math", namespace))
        answer = person.post(path, data=form)
        assert (answer.status_code, "replaced by another" in answer.text) == (409, True), answer.text
    assert control_plane.get("rljob", "math", "-n", namespace)["spec"]["suspend"] is False


def _hidden(page: str) -> Iterator[tuple[str, str]]:
    for part in page.split('<input type="hidden" name="')[1:]:
        name, _, rest = part.partition('" value="')
        yield name, rest.partition('"')[0]


def test_a_console_that_only_shows_and_what_strangers_meet(
    control_plane: ControlPlane, controller: StubController, namespace: str, tmp_path: Path
) -> None:
    control_plane.apply(quickstart("math", namespace))
    boss = token_of(control_plane, namespace, "boss", *LOOK, *ACT)
    stranger = token_of(control_plane, namespace, "stranger")
    with served(control_plane, tmp_path, controller.address) as url:
        with signed_in(url, boss) as person:
            assert "/actions/" not in person.get(f"/jobs/{namespace}/math").text
            for path in (f"/jobs/{namespace}/math/actions/suspend", f"/jobs/{namespace}/math/suspend"):
                assert person.post(path).status_code == 404
        with signed_in(url, stranger) as person:
            answer = person.get("/", params={"namespace": namespace})
            assert (answer.status_code, "You may not see this" in answer.text) == (403, True)
            assert person.get(f"/jobs/{namespace}/math").status_code == 403
        answer = httpx.get(url, follow_redirects=True, timeout=30)
        assert "Kubernetes token" in answer.text
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        answer = httpx.post(f"{url}/login", data={"token": "forged"}, headers={"origin": url}, timeout=30)
        assert (answer.status_code, "does not know this token" in answer.text) == (403, True)
        answer = httpx.post(f"{url}/login", data={"token": boss}, headers={"origin": "http://evil.example"}, timeout=30)
        assert (answer.status_code, "another site" in answer.text) == (403, True)
