"""Who may import whom, and who may load what."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.repo.tree import PACKAGES, ROOT

LIGHT = ("common", "buffer", "controller", "console", "reward_service")
HEAVY = ("torch", "transformers", "vllm", "megatron")

LOAD_ALL = """
import importlib, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")
name, heavy = sys.argv[1], sys.argv[2].split(",")
package = importlib.import_module(name)
first = {}
for module in [name, *(found.name for found in pkgutil.walk_packages(package.__path__, name + "."))]:
    if module.rpartition(".")[2] == "__main__":
        continue
    importlib.import_module(module)
    for library in heavy:
        if library in sys.modules:
            first.setdefault(library, module)
print(json.dumps(first))
"""


def test_the_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    ran = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("package", LIGHT)
def test_light_packages_load_no_heavy_library(package: str) -> None:
    """Every module of the package is imported; the answer names the module that first drew a library in."""
    ran = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, f"crescendo.{package}", ",".join(HEAVY)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == {}


def test_each_folder_is_linked_as_a_package() -> None:
    links = {link.name: link for link in (ROOT / "src" / "crescendo").iterdir() if link.is_symlink()}
    for name, link in links.items():
        target = ROOT / ("proto/python" if name == "proto" else name)
        assert link.resolve() == target.resolve()
        assert not link.readlink().is_absolute(), f"{link} is an absolute link"
    assert set(LIGHT) <= set(PACKAGES)
