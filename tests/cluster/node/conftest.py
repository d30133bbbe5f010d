"""One node, one installation and one team's namespace for all tests of this folder, which run in the order below.

They tell one story, from nothing to a trained model and away again: each test stands on those before it.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import cannot
from tests.cluster.kube.helm import Helm
from tests.cluster.kube.node import Node
from tests.cluster.node.installed import Stopwatch, build_all, install, obstacles, secure_namespace, start_node
from tests.cluster.node.short_job import packages

# A new file belongs here; what it leaves behind, the later ones find.
ORDER = (
    "test_installation", "test_short_jobs", "test_long_job", "test_stored_job", "test_policies", "test_console",
    "test_uninstall",
)  # fmt: skip
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
TEAM = "team"
LIMIT_S = 2400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts this folder's tests into their order, in the places that they take up."""
    places = [place for place, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    here = [items[place] for place in places]
    if unlisted := {item.path.stem for item in here} - set(ORDER):
        raise pytest.UsageError(f"{__file__}: ORDER does not say when {', '.join(sorted(unlisted))} runs: add it")
    for place, item in zip(places, sorted(here, key=lambda item: ORDER.index(item.path.stem)), strict=True):
        items[place] = item
        item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="package")
def watch(request: pytest.FixtureRequest) -> Iterator[Stopwatch]:
    found = Stopwatch()
    yield found
    capture = request.config.pluginmanager.getplugin("capturemanager")
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None:  # in a worker of xdist there is none
        with capture.global_and_fixture_disabled():
            reporter.write_line(f"\n{found.report()}")


@pytest.fixture(scope="package")
def volume_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("volumes")
    for folder in (found, *found.parents[:2]):
        folder.chmod(0o755)
    return found


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def helm(node: Node, watch: Stopwatch) -> Helm:
    return install(node, watch)


@pytest.fixture(scope="package")
def team(node: Node, helm: Helm) -> str:
    secure_namespace(node, TEAM)
    node.apply({"apiVersion": "v1", "kind": "List", "items": packages(TEAM)})
    return TEAM


def keep_logs(node: Node) -> None:
    """What pods and programs said, into the folder that CRESCENDO_NODE_LOGS names."""
    wanted = os.environ.get("CRESCENDO_NODE_LOGS")
    if wanted:
        subprocess.run(["cp", "-r", str(node.folder / "logs"), str(node.folder / "pod-logs"), wanted], check=True)
