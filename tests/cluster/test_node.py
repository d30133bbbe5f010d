"""A real node, from nothing to a trained model: real images, real Helm, real pods of the real services on CPU.

One story in order; each test stands on those before it.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from safetensors import safe_open

from tests.cluster.conftest import cannot
from tests.cluster.jobs import JobView
from tests.cluster.kube.build import binaries
from tests.cluster.kube.control_plane import KubectlError
from tests.cluster.kube.helm import Helm
from tests.cluster.kube.node import Node
from tests.cluster.kube.processes import free_port
from tests.cluster.node_fixtures import (
    NAMESPACE,
    RELEASE,
    Stopwatch,
    build_all,
    install,
    obstacles,
    secure_namespace,
    start_node,
)  # fmt: skip
from tests.cluster.short_job import packages, short_job, takes_disaggregated, volumes

pytestmark = pytest.mark.timeout(2400)
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
]
TEAM = "team"
RUNNING_S = 480.0
SUCCEEDED_S = 900.0
Eventually = Callable[..., None]


@pytest.fixture(scope="module")
def watch(request: pytest.FixtureRequest) -> Iterator[Stopwatch]:
    found = Stopwatch()
    yield found
    capture = request.config.pluginmanager.getplugin("capturemanager")
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None:  # in a worker of xdist there is none
        with capture.global_and_fixture_disabled():
            reporter.write_line(f"\n{found.report()}")


@pytest.fixture(scope="module")
def volume_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("volumes")
    for folder in (found, *found.parents[:2]):
        folder.chmod(0o755)
    return found


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, watch: Stopwatch) -> Iterator[Node]:
    if missing := obstacles():
        cannot(f"a real node needs what this machine lacks: {', '.join(missing)}")
    if not CHROMIUM.exists():
        cannot(f"{CHROMIUM} is missing: install Chromium")
    found = start_node(tmp_path_factory.mktemp("node"), build_all(watch), watch)
    try:
        yield found
    finally:
        keep_logs(found)
        with watch.step("cluster down"):
            found.stop()


@pytest.fixture(scope="module")
def helm(node: Node, watch: Stopwatch) -> Helm:
    return install(node, watch)


@pytest.fixture(scope="module")
def team(node: Node, helm: Helm) -> str:
    secure_namespace(node, TEAM)
    node.apply({"apiVersion": "v1", "kind": "List", "items": packages(TEAM)})
    return TEAM


def keep_logs(node: Node) -> None:
    """What pods and programs said, into the folder that CRESCENDO_NODE_LOGS names."""
    wanted = os.environ.get("CRESCENDO_NODE_LOGS")
    if wanted:
        subprocess.run(["cp", "-r", str(node.folder / "logs"), str(node.folder / "pod-logs"), wanted], check=True)


def test_the_installation_works(node: Node, helm: Helm, watch: Stopwatch) -> None:
    with watch.step("helm test"):
        helm.test(RELEASE)
    pods = node.get("pods", "-A")["items"]
    assert {pod["metadata"]["namespace"] for pod in pods} == {NAMESPACE, "kuberay-system"}
    assert [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] != "Running"] == []
    log = node.kubectl("logs", "deploy/crescendo-operator", "-n", NAMESPACE)
    wrong = [line for line in log.splitlines() if " ERROR " in line or line.startswith("Traceback")]
    assert [line for line in wrong if "will retry" not in line] == []  # an API server busy with a new definition: 429


@pytest.mark.parametrize("name", ["colocated", "disaggregated"])
def test_a_short_job_succeeds(
    node: Node, team: str, volume_folder: Path, watch: Stopwatch, eventually: Eventually, name: str
) -> None:
    if name == "disaggregated" and not takes_disaggregated():
        pytest.skip("this version's config check refuses placement.name disaggregated on CPU")
    job = JobView(node, name, team)
    manifest = short_job(name, team, volume_folder, disaggregated=name == "disaggregated")
    node.apply({"apiVersion": "v1", "kind": "List", "items": volumes(name, team, volume_folder)})
    seen: list[str] = []

    def reached(phase: str) -> bool:
        now = job.phase
        if now not in seen[-1:]:
            seen.append(now)
        assert now not in ("Failed", "Restarting"), diagnosis(node, job)
        return now == phase or "Succeeded" in seen

    node.apply(manifest)
    try:
        with watch.step(f"{name} submitted to Running"):
            eventually("it runs", lambda: reached("Running"), RUNNING_S)
        with watch.step(f"{name} Running to Succeeded"):
            eventually("it succeeds", lambda: reached("Succeeded"), SUCCEEDED_S)
    except BaseException:
        print(diagnosis(node, job))
        raise
    assert seen[-2:] == ["Running", "Succeeded"]
    head = f"rl.crescendo.dev/job={name},rl.crescendo.dev/component=head"
    assert "--dashboard-host" in node.kubectl("get", "pods", "-n", team, "-l", head, "-o", "yaml")
    assert "Ray runtime started" in node.kubectl("logs", "-n", team, "-l", head, "--tail=-1")
    check_status(node, job)
    check_volume(volume_folder / f"{name}-run" / name)
    eventually("its pods have ended", lambda: running_pods(node, team) == [], 180)


def running_pods(node: Node, namespace: str) -> list[str]:
    """Names of pods that still run."""
    pods = node.get("pods", "-n", namespace)["items"]
    return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]


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
    """The reader may see the team's jobs and no other's."""
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
        yield f"http://127.0.0.1:{local}"
        child.terminate()


def test_uninstalling_strands_nothing(
    node: Node, helm: Helm, team: str, watch: Stopwatch, eventually: Eventually
) -> None:
    with watch.step("helm uninstall"):
        helm.uninstall(RELEASE)
        eventually("its pods are gone", lambda: node.get("pods", "-n", NAMESPACE)["items"] == [], 150)
    assert node.kubectl("get", "deployments,services,configmaps", "-n", NAMESPACE, "-o", "name").split() == [
        "configmap/kube-root-ca.crt"
    ]
    jobs = [job["metadata"]["name"] for job in node.get("rljobs", "-n", team)["items"]]
    assert "colocated" in jobs
    for name in jobs:
        node.kubectl("delete", "rljob", name, "-n", team, "--timeout=60s")
    children = ("get", "rayjobs,rayclusters,statefulsets,jobs,pods", "-n", team, "-o", "name")
    eventually("their children are gone", lambda: node.kubectl(*children).split() == [], 150)
    assert "persistentvolumeclaim/colocated-run" in node.kubectl("get", "pvc", "-n", team, "-o", "name").split()


def check_status(node: Node, job: JobView) -> None:
    """What a person sees of a job that succeeded."""
    status = job.status()
    assert (status["phase"], status["restarts"], status["attempt"]) == ("Succeeded", 0, 1)
    held = {one["type"] for one in status["conditions"] if one["status"] == "True"}
    assert {"Accepted", "Complete", "Checkpointed"} <= held
    assert "Failed" not in held
    assert status["progress"]["iteration"] == status["progress"]["totalIterations"] >= 2
    assert status["checkpoint"]["iteration"] >= 2
    events = node.get("events", "-n", job.namespace, "--field-selector=involvedObject.kind=RLJob")["items"]
    reasons = {event["reason"] for event in events if event["involvedObject"]["name"] == job.name}
    assert {"AttemptCreated", "Succeeded"} <= reasons


def check_volume(run: Path) -> None:
    """What the run left on its volume: commits whose files are there, trained weights, and an archive."""
    commits = sorted(run.glob("checkpoints/commit-*.json"))
    assert commits, sorted(map(str, run.rglob("*")))
    assert list(run.glob("checkpoints/i*/part0.safetensors"))
    with safe_open(run / "export/model.safetensors", framework="numpy") as weights:
        assert "model.embed_tokens.weight" in weights.keys()  # noqa: SIM118  not a mapping
    assert list(run.glob("archive/data/*.parquet"))
    kinds = [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert kinds[-1] == "run.done"


def diagnosis(node: Node, job: JobView) -> str:
    """Everything that helps to see why a job did not get on."""
    parts = [json.dumps(job.status(), indent=1)]
    for arguments in (("get", "pods", "-A", "-o", "wide"), ("get", "events", "-n", job.namespace)):
        parts.append(node.kubectl(*arguments))
    for pod in node.get("pods", "-n", job.namespace)["items"]:
        name = pod["metadata"]["name"]
        try:
            said = node.kubectl("logs", "-n", job.namespace, name, "--all-containers", "--tail=60")
        except KubectlError as error:  # of a container that has not started
            said = str(error)
        parts.append(f"---- {name}\n{said}")
    return "\n".join(parts)
