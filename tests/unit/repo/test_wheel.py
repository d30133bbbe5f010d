"""The wheel holds what the tree holds: every package file, data files too, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.unit.repo.tree import PACKAGES, ROOT, tracked_files

NOT_SHIPPED = (".md",)


def package_files() -> set[str]:
    """Where in the wheel each tracked package file belongs."""
    found = {"crescendo/__init__.py", "crescendo/py.typed"}
    for package in PACKAGES:
        folder = "proto/python/" if package == "proto" else f"{package}/"
        for name in tracked_files():
            if name.startswith(folder) and not name.endswith(NOT_SHIPPED):
                found.add(f"crescendo/{package}/{name.removeprefix(folder)}")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tracked files, so that the checkout stays as it is."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*tracked_files(), *(f"src/crescendo/{package}" for package in PACKAGES)):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target, follow_symlinks=False)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_equals_the_tree(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("crescendo/")}
    assert names == package_files()


def test_the_wheel_carries_the_licence_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "crescendo = crescendo.cli.main:main" in entry_points
