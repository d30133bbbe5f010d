"""One control plane for all cluster tests. Skips where Kubernetes cannot be built; fails there in CI.

They run in the order in which kube/ahead.py builds what they need: the control plane's, then the images', the node's,
and those that need another program beside the control plane.
"""

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.controller_stub import StubController, write_identity
from tests.cluster.jobs import JobView, quickstart, volumes
from tests.cluster.kube.build import build
from tests.cluster.kube.control_plane import ControlPlane
from tests.cluster.kube.proxy import Proxy
from tests.cluster.kube.ready import ready
from tests.cluster.operator_process import Operator

HERE = Path(__file__).parent
ORDER = (HERE.name, "images", "node", "test_queue", "test_cert_manager")  # of folders, and of files on their own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts this folder's tests into their order, in the places that they take up."""
    places = [place for place, item in enumerate(items) if item.path.is_relative_to(HERE)]
    for place, item in zip(places, sorted((items[place] for place in places), key=when), strict=True):
        items[place] = item


def when(item: pytest.Item) -> int:
    """A test's place in ORDER; equals stay as they are."""
    return ORDER.index(item.path.stem if item.path.stem in ORDER else item.path.parent.name)


def cannot(reason: str) -> None:
    """Skips with the reason, or fails in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    if shutil.which("go") is None:
        cannot("Go is not installed: Kubernetes is built from the Go module proxy")
    try:
        build()
    except (RuntimeError, subprocess.SubprocessError) as error:
        cannot(f"Kubernetes could not be built: {error}")
    with ready(tmp_path_factory.mktemp("cluster")) as plane:
        yield plane


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    name = f"team-{uuid.uuid4().hex[:8]}"
    control_plane.kubectl("create", "namespace", name)
    control_plane.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def operator(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    yield from started(Operator(control_plane.admin, tmp_path, [namespace]))


@pytest.fixture
def operator_with_runs(
    control_plane: ControlPlane, controller: StubController, namespace: str, tmp_path: Path
) -> Iterator[Operator]:
    """One that finds the stub where each run's controller would answer."""
    yield from started(Operator(control_plane.admin, tmp_path, [namespace], controllers=controller.address))


def started(operator: Operator) -> Iterator[Operator]:
    """Runs it for a test, and prints the end of its log: pytest shows that when the test failed."""
    operator.start()
    yield operator
    operator.kill()
    print(operator.log[-4000:])


@pytest.fixture
def create(control_plane: ControlPlane, namespace: str) -> Callable[..., JobView]:
    """Creates the quick start as a job of a name, with what its spec is to have besides."""

    def one(name: str, **spec: Any) -> JobView:
        volumes(control_plane, namespace, (name,))
        control_plane.apply(quickstart(name, namespace, **spec))
        return JobView(control_plane, name, namespace)

    return one


@pytest.fixture
def job(create: Callable[..., JobView]) -> JobView:
    return create("math")


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[Proxy]:
    found = Proxy(control_plane.server, control_plane.folder / "pki")
    found.start()
    yield found
    found.stop()
    print({f"{verb} {resource}": count for (verb, resource), count in found.seen.items()}, dict(found.injected))


@pytest.fixture
def controller(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StubController]:
    """Where an operator that is told so finds the controller of every run."""
    for name, value in write_identity(control_plane, tmp_path / "controller").items():
        monkeypatch.setenv(name, value)
    found = StubController()
    found.start()
    yield found
    found.stop()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until a condition holds, within a deadline."""

    def wait(what: str, holds: Callable[[], bool], limit_s: float = 60.0) -> None:
        deadline = time.monotonic() + limit_s
        while not holds():
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not happen within {limit_s:.0f} s", pytrace=False)
            time.sleep(0.2)

    return wait
