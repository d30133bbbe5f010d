"""`crescendo submit|get|logs|suspend|resume|promote|delete` against a real API server."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.jobs import JobView
from tests.cluster.kube.control_plane import ControlPlane

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes/quickstart/recipe.yaml")


def crescendo(plane: ControlPlane, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "crescendo.cli.main", *arguments, "--kubeconfig", str(plane.admin)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


def test_a_job_from_submission_to_deletion(control_plane: ControlPlane, namespace: str) -> None:
    here = ("-n", namespace)
    ran = crescendo(control_plane, "submit", RECIPE, "--image", "crescendo/run:1", "--name", "math", *here)
    assert ran.returncode == 0, ran.stderr
    job = JobView(control_plane, "math", namespace)
    assert job.body()["spec"]["image"] == "crescendo/run:1"

    again = crescendo(control_plane, "submit", RECIPE, "--image", "crescendo/run:1", "--name", "math", *here)
    assert again.returncode == 2
    assert "there is an RLJob" in again.stderr

    assert "math" in crescendo(control_plane, "get", *here).stdout
    assert crescendo(control_plane, "suspend", "math", *here).returncode == 0
    assert job.body()["spec"]["suspend"] is True
    assert crescendo(control_plane, "resume", "math", "--cluster", *here).returncode == 0
    assert job.body()["spec"]["suspend"] is False

    stages = job.body()["spec"]["run"]["steps"][1]["rl"]["stages"]
    promoted = crescendo(control_plane, "promote", "math", "--cluster", "--stage", stages[1]["name"], *here)
    assert promoted.returncode == 0, promoted.stderr
    assert job.body()["spec"]["promoteTo"] == stages[1]["name"]
    wrong = crescendo(control_plane, "promote", "math", "--cluster", "--stage", "nowhere", *here)
    assert wrong.returncode == 2
    assert "later stages" in wrong.stderr

    no_pods = crescendo(control_plane, "logs", "math", *here)
    assert no_pods.returncode == 1
    assert "has no pods now" in no_pods.stderr

    unasked = crescendo(control_plane, "delete", "math", *here)
    assert unasked.returncode == 2
    assert "--yes" in unasked.stderr
    assert crescendo(control_plane, "delete", "math", "--yes", *here).returncode == 0
    gone = crescendo(control_plane, "get", "math", *here)
    assert gone.returncode == 2
    assert "there is no RLJob math" in gone.stderr


def test_what_the_api_server_refuses_is_told(control_plane: ControlPlane, namespace: str) -> None:
    long = "a" * 41
    ran = crescendo(control_plane, "submit", RECIPE, "--image", "x", "--name", long, "-n", namespace)
    assert ran.returncode == 2
    assert "at most 40 characters" in ran.stderr
