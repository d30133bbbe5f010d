"""Usual mistakes with `crescendo submit` and `get`: each ends with what to do about it, none with a traceback."""

import json
import sys
from pathlib import Path

import pytest

from crescendo.cli.main import main
from crescendo.controller.operator.resource import API_VERSION, KIND


@pytest.mark.parametrize("metadata", ["math", ["math"], {"name": 7}, {}])
def test_an_rljob_without_a_name_is_refused(
    metadata: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rljob.yaml"
    file.write_text(json.dumps({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {"run": {}}}))
    for more in ([], ["--name", ""]):
        assert main(["submit", str(file), "--image", "any", *more]) == 2
        assert "metadata.name" in capsys.readouterr().err


def test_a_login_that_the_kubeconfigs_program_cannot_make_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = {
        "apiVersion": "client.authentication.k8s.io/v1beta1",
        "command": sys.executable,
        "args": ["-c", "raise SystemExit('your session has expired')"],
    }
    kubeconfig = {
        "current-context": "any",
        "contexts": [{"name": "any", "context": {"cluster": "any", "user": "any"}}],
        "clusters": [{"name": "any", "cluster": {"server": "https://127.0.0.1:9"}}],
        "users": [{"name": "any", "user": {"exec": program}}],
    }
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(kubeconfig))
    assert main(["get", "--kubeconfig", str(file)]) == 3
    said = capsys.readouterr().err
    assert "your session has expired" in said
    assert "kubectl auth whoami" in said
