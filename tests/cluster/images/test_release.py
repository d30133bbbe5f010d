"""`make release` into a real registry, and back out of it: images, chart, and what both say about themselves."""

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import helm_python
import pytest

from tests.cluster.conftest import cannot
from tests.cluster.images.registry import PASSWORD, PROGRAM, USER, Registry
from tests.cluster.kube import images
from tests.cluster.kube.images import OURS, ROOT, version

pytestmark = pytest.mark.timeout(1800)
LABELS = "org.opencontainers.image."
CHART = "team/charts/crescendo"
ABOUT = """
import importlib.metadata, importlib.util, json, os
heavy = [name for name in ("torch", "vllm", "ray", "transformers") if importlib.util.find_spec(name)]
print(json.dumps([os.getuid(), importlib.metadata.version("crescendo-rl"), heavy]))
"""


@dataclass(frozen=True)
class Release:
    """What was pushed. said: the command's output; begun_at: the commit; storage: a store of its own to pull into."""

    registry: Registry
    said: str
    begun_at: str
    folder: Path
    storage: Path

    def name(self, image: str) -> str:
        """An image as a node pulls it."""
        return f"{self.registry.host}/team/crescendo/{image}"

    def is_of(self, revision: str) -> bool:
        """Whether a revision is the commit of the release, or one made while it was tested."""
        since = git("rev-list", f"{self.begun_at}..HEAD").split()
        return revision.removesuffix("-dirty") in {self.begun_at, *since}

    def buildah(self, *arguments: str) -> str:
        """buildah in the store of its own."""
        return buildah(self.storage, *arguments)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    missing = [] if os.geteuid() == 0 else ["root"]
    missing += [name for name in (PROGRAM, "make", *images.PROGRAMS) if shutil.which(name) is None]
    if missing:
        cannot(f"a release needs what this machine lacks: {', '.join(missing)}")
    found = Registry(tmp_path_factory.mktemp("registry"))
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def release(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    folder = tmp_path_factory.mktemp("release")
    images.build_base()
    settings, begun_at = images.settings(), git("rev-parse", "HEAD")
    try:
        said = make(registry, settings, CRESCENDO_REGISTRY_USER=USER, CRESCENDO_REGISTRY_PASSWORD=PASSWORD)
        storage = folder / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder / "store"}"\nrunroot = "{folder / "run"}"\n'
        )
        yield Release(registry, said, begun_at, folder, storage)
    finally:
        names = [f"{registry.host}/team/crescendo/{image}:{version()}" for image in OURS]
        buildah(Path(settings["CONTAINERS_STORAGE_CONF"]), "rmi", "--force", *names)
        shutil.rmtree(folder)


def make(registry: Registry, settings: dict[str, str], **login: str) -> str:
    """`make release`; its output, or a failure that tells it."""
    ran = subprocess.run(
        ["make", "--no-print-directory", "release", f"REGISTRY={registry.host}/team", "PLAIN_HTTP=1"],
        cwd=ROOT, env={**os.environ, **settings, **login}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    return ran.stdout


def buildah(storage: Path, *arguments: str) -> str:
    """Its output. storage: the store's settings."""
    ran = subprocess.run(
        ["buildah", *arguments], env={**os.environ, "CONTAINERS_STORAGE_CONF": str(storage)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def git(*arguments: str) -> str:
    """Its output."""
    ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return ran.stdout.strip()


@pytest.mark.parametrize("image", OURS)
def test_an_image_says_its_version_and_revision_and_no_address(release: Release, image: str) -> None:
    digest, manifest = release.registry.manifest(f"team/crescendo/{image}", version())
    assert f"pushed: {release.name(image)}@{digest}" in release.said.splitlines()
    config = release.registry.blob(f"team/crescendo/{image}", manifest["config"]["digest"])
    labels = config["config"]["Labels"]
    assert labels[f"{LABELS}version"] == version()
    assert release.is_of(labels[f"{LABELS}revision"])
    said = json.dumps([config["config"], config.get("history", [])])
    assert not [word for word in ("://", release.registry.host, str(ROOT), PASSWORD) if word in said]


@pytest.mark.parametrize("image", ["operator", "reward"])
def test_an_image_pulled_by_its_digest_runs_as_nobody_special(release: Release, image: str) -> None:
    digest, manifest = release.registry.manifest(f"team/crescendo/{image}", version())
    pulled = release.buildah(
        "pull", "--quiet", "--tls-verify=false", "--creds", f"{USER}:{PASSWORD}", f"{release.name(image)}@{digest}"
    )
    assert f"sha256:{pulled}" == manifest["config"]["digest"]  # which names every layer's content
    container = release.buildah("from", "--pull-never", pulled)
    try:
        said = release.buildah("run", "--isolation", "chroot", container, "--", "python", "-c", ABOUT)
        assert json.loads(said) == [1000, version(), []]
    finally:
        release.buildah("rm", container)


def test_the_chart_pulled_by_its_version_is_the_checkouts(release: Release) -> None:
    """Helm checks the archive against the digest of the manifest's layer."""
    assert f"oci://{release.registry.host}/{CHART}" in release.said.splitlines()
    _, manifest = release.registry.manifest(CHART, version())
    notes = manifest["annotations"]
    assert notes[f"{LABELS}version"] == version()
    assert release.is_of(notes[f"{LABELS}revision"])
    assert not [value for value in notes.values() if "://" in value]
    host = release.registry.host
    with helm_python.RegistryClient(plain_http=True, credentials_file=release.folder / "login.json") as client:
        client.login(host, USER, PASSWORD, plain_http=True)
        helm_python.pull(
            f"oci://{host}/{CHART}", version=version(), client=client, plain_http=True, destination=release.folder
        )
    with tarfile.open(release.folder / f"crescendo-{version()}.tgz") as archive:
        archive.extractall(release.folder, filter="data")
    ours, pulled = ROOT / "helm/crescendo", release.folder / "crescendo"
    names = {path.relative_to(ours) for path in ours.rglob("*") if path.is_file() and path.suffix != ".md"}
    assert {path.relative_to(pulled) for path in pulled.rglob("*") if path.is_file()} == names
    changed = {name for name in names if (ours / name).read_bytes() != (pulled / name).read_bytes()}
    assert changed == {Path("Chart.yaml")}  # by its revision
