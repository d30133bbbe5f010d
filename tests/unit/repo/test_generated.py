"""Generated files are what their generators would write now."""

import subprocess
import sys

from crescendo.controller.operator.crd.__main__ import main as crd_main
from tests.unit.repo.tree import ROOT


def test_the_stubs_are_fresh() -> None:
    ran = subprocess.run(
        [sys.executable, "proto/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_the_custom_resource_definition_is_fresh() -> None:
    assert crd_main(["--check", str(ROOT / "helm/crescendo/files/rljob-crd.yaml")]) == 0
