"""Builds Kubernetes, etcd, kwok, KubeRay and kube-router from Go modules; the control plane's when run as a program.

Versions are pinned in tools/go.mod, and those of KubeRay and kube-router in modules of their own. Binaries go to a
cache outside the repository, in a folder named by the pins, so that they are built once a machine; whoever else wants
one meanwhile waits for it. About ten minutes on two cores when nothing is cached.
"""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.cluster.kube.processes import die_with_parent
from tests.cluster.kube.seconds import noted_as

TOOLS: Final = Path(__file__).parent / "tools"
KUBERNETES: Final = "v1.36.4"
CONTROL_PLANE: Final = (
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kube-controller-manager",
    "k8s.io/kubernetes/cmd/kube-scheduler",
    "k8s.io/kubernetes/cmd/kubectl",
    "go.etcd.io/etcd/server/v3",
    "sigs.k8s.io/kwok/cmd/kwok",
)
NODE: Final = (
    "k8s.io/kubernetes/cmd/kubelet",
    "k8s.io/kubernetes/cmd/kube-proxy",
    "github.com/containerd/containerd/v2/cmd/containerd",
    "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
    "github.com/containerd/containerd/v2/cmd/ctr",
    "./dns",
    "./pause",
    "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
)
APART: Final = ("kuberay", "kube-router")  # modules of their own, for their dependencies are not Kubernetes'
RENAMED: Final = {"server": "etcd", "ray-operator": "kuberay-operator"}
LIMIT_S: Final = 2400
ATTEMPTS: Final = 3


def cache() -> Path:
    """Where built things are kept: a folder named by the pins."""
    digest = hashlib.sha256()
    for folder in (TOOLS, *(TOOLS / name for name in APART)):
        for name in ("go.mod", "go.sum"):
            digest.update((folder / name).read_bytes())
    for program in ("dns", "pause"):
        digest.update((TOOLS / program / "main.go").read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "crescendo-cluster" / digest.hexdigest()[:12]


def binaries() -> Path:
    """The folder of the built programs."""
    return cache() / "bin"


def missing(packages: tuple[str, ...]) -> list[str]:
    """Packages whose programs are not built yet."""
    return [package for package in packages if not (binaries() / _program(package)).exists()]


def build(*, node: bool = False) -> None:
    """Builds what is missing; raises subprocess.CalledProcessError or RuntimeError when Go is not there."""
    if not missing(_wanted(node)):
        return
    if shutil.which("go") is None:
        raise RuntimeError("Go is not installed; the cluster tests build Kubernetes with it (Go 1.24 or newer).")
    binaries().mkdir(parents=True, exist_ok=True)
    for package in missing(_wanted(node)):
        target = binaries() / _program(package)
        with alone(target), noted_as(cache(), "programs", unless=target.exists()):
            if not target.exists():
                apart = next((name for name in APART if name in package), "")
                go_build(package, TOOLS / apart, target)


def program_beside(name: str) -> Path:
    """Where a program with pins of its own is, or will be: another version of it builds nothing else again."""
    digest = hashlib.sha256()
    for file in sorted((TOOLS / name).iterdir()):
        digest.update(file.read_bytes())
    return binaries().parents[1] / f"{name}-{digest.hexdigest()[:12]}" / name


def build_beside(name: str, package: str) -> None:
    """Builds it unless it is there; raises subprocess.CalledProcessError, or RuntimeError when Go is not there."""
    if program_beside(name).exists():
        return
    if shutil.which("go") is None:
        raise RuntimeError(f"Go is not installed; the cluster tests build {name} with it (Go 1.26 or newer).")
    program_beside(name).parent.mkdir(parents=True, exist_ok=True)
    with alone(program_beside(name)):
        if not program_beside(name).exists():
            go_build(package, TOOLS / name, program_beside(name))


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Waits for another process that builds this target: for as long as that builds, which has its own deadline."""
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def module_folder(module: str, *, within: str = "") -> Path:
    """Where the sources of a pinned module lie; downloads them at first."""
    ran = subprocess.run(
        ["go", "list", "-m", "-f", "{{.Dir}}", module],
        cwd=TOOLS / within, env=_environment(), capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return Path(ran.stdout.strip())


def _wanted(node: bool) -> tuple[str, ...]:
    return (*CONTROL_PLANE, *(NODE if node else ()), "github.com/ray-project/kuberay/ray-operator")


def _program(package: str) -> str:
    name = package.removesuffix("/v3").rsplit("/", 1)[-1]
    return RENAMED.get(name, name)


def go_build(package: str, folder: Path, target: Path) -> None:
    """Builds a program from the module in a folder; raises subprocess.CalledProcessError."""
    begun = time.monotonic()
    version = "k8s.io/component-base/version.gitVersion"
    client = "k8s.io/client-go/pkg/version.gitVersion"
    flags = f"-s -w -X {version}={KUBERNETES} -X {client}={KUBERNETES}"
    command = [
        "go",
        "build",
        "-tags",
        "no_btrfs,no_devmapper,no_zfs",
        "-ldflags",
        flags,
        "-o",
        f"{target}.new",
        package,
    ]
    for attempt in range(ATTEMPTS):  # the first also downloads modules, which a network may interrupt
        ran = subprocess.run(
            command, cwd=folder, env=_environment(), timeout=LIMIT_S, check=attempt + 1 == ATTEMPTS,
            preexec_fn=die_with_parent,
        )  # fmt: skip
        if ran.returncode == 0:
            break
    os.replace(f"{target}.new", target)
    print(f"[build] {target.name} {time.monotonic() - begun:.0f} s", flush=True)


def _environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false"}


def main() -> int:
    """Builds those of the control plane and says how long each took."""
    try:
        build()
    except (RuntimeError, subprocess.SubprocessError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    print(binaries())
    return 0


if __name__ == "__main__":
    sys.exit(main())
