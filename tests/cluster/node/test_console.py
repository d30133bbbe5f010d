"""The console of the cluster, in a browser, with a person's own token."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.cluster.kube.build import binaries
from tests.cluster.kube.node import Node
from tests.cluster.kube.processes import free_port
from tests.cluster.node.conftest import CHROMIUM
from tests.cluster.node.installed import NAMESPACE, RELEASE

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
]


def test_the_console_shows_the_job_in_a_browser(node: Node, team: str, tmp_path: Path) -> None:
    node.kubectl("create", "serviceaccount", "reader", "-n", team)
    node.kubectl("create", "rolebinding", "reader", "-n", team, "--clusterrole=view", f"--serviceaccount={team}:reader")
    token = node.kubectl("create", "token", "reader", "-n", team).strip()
    with forwarded(node, f"svc/{RELEASE}-console", 80) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        page = browser.new_page()
        page.set_default_timeout(30_000)
        complaints: list[str] = []
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(url)
        page.get_by_label("Kubernetes token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        look_around(page, url, team)
        page.screenshot(path=str(screenshot(tmp_path)), full_page=True)
        browser.close()
    assert complaints == ["Failed to load resource: the server responded with a status of 403 (Forbidden)"]


def look_around(page: Page, url: str, team: str) -> None:
    """The reader lands among the team's jobs and may see no other's."""
    expect(page).to_have_url(f"{url}/?namespace={team}")
    page.goto(f"{url}/")
    expect(page.get_by_text("You may not see this")).to_be_visible()
    page.goto(f"{url}/?namespace={team}")
    page.get_by_role("link", name="colocated").click()
    expect(page.get_by_role("heading", name="colocated")).to_be_visible()
    expect(page.get_by_text("Succeeded").first).to_be_visible()
    expect(page.get_by_role("region", name="Conditions")).to_contain_text("Checkpointed")
    expect(page.locator(".events")).to_contain_text("AttemptCreated")


def screenshot(folder: Path) -> Path:
    """Where the page's picture goes: the test's folder, or CRESCENDO_NODE_LOGS."""
    return Path(os.environ.get("CRESCENDO_NODE_LOGS") or folder) / "console.png"


@contextmanager
def forwarded(node: Node, target: str, port: int) -> Iterator[str]:
    """`kubectl port-forward`, as the chart's notes tell people to."""
    local = free_port()
    command = [str(binaries() / "kubectl"), f"--kubeconfig={node.admin}", "-n", NAMESPACE, "port-forward", target]
    with subprocess.Popen([*command, f"{local}:{port}"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert "Forwarding" in child.stdout.readline()
        try:
            yield f"http://127.0.0.1:{local}"
        finally:
            child.terminate()
