"""`crescendo submit|get|logs|suspend|resume|promote|delete` against a real API server."""

import json
from pathlib import Path

import pytest

from tests.cluster.jobs import ROOT, JobView, crescendo, quickstart
from tests.cluster.kube.control_plane import ControlPlane

pytestmark = pytest.mark.timeout(600)
RECIPE = str(ROOT / "recipes/quickstart/recipe.yaml")


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
    assert "has no submitter pod now" in no_pods.stderr

    unasked = crescendo(control_plane, "delete", "math", *here)
    assert unasked.returncode == 2
    assert "--yes" in unasked.stderr
    assert crescendo(control_plane, "delete", "math", "--yes", *here).returncode == 0
    gone = crescendo(control_plane, "get", "math", *here)
    assert gone.returncode == 2
    assert "there is no RLJob math" in gone.stderr


def test_a_file_says_its_namespace_and_a_typo_in_it_is_no_default(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    file = tmp_path / "rljob.yaml"
    job = quickstart("math", namespace)
    file.write_text(json.dumps(job | {"spec": job["spec"] | {"backofLimit": 9}}))
    ran = crescendo(control_plane, "submit", str(file))
    assert (ran.returncode, "an RLJob has no spec.backofLimit" in ran.stderr) == (2, True), ran.stderr
    assert "math" not in crescendo(control_plane, "get", "-n", namespace).stdout
    file.write_text(json.dumps(job))
    elsewhere = crescendo(control_plane, "submit", str(file), "-n", "default")
    assert (elsewhere.returncode, f"is for namespace {namespace}" in elsewhere.stderr) == (2, True), elsewhere.stderr
    ran = crescendo(control_plane, "submit", str(file), "--image", "crescendo/run:2")
    assert ran.returncode == 0, ran.stderr
    assert JobView(control_plane, "math", namespace).body()["spec"]["image"] == "crescendo/run:2"
    assert "no status yet" in crescendo(control_plane, "get", "math", "-n", namespace).stdout
    del job["metadata"]["name"]
    file.write_text(json.dumps(job))
    nameless = crescendo(control_plane, "submit", str(file))
    assert (nameless.returncode, "no metadata.name" in nameless.stderr) == (2, True), nameless.stderr


def test_who_may_not_or_cannot_is_told_what_to_do(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    nobody = json.loads(control_plane.user("nobody").read_text())
    nobody["contexts"][0]["context"]["namespace"] = namespace
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(nobody))
    refused = crescendo(control_plane, "get", "math", kubeconfig=file)
    assert refused.returncode == 2
    assert f'in the namespace "{namespace}"' in refused.stderr  # the context's, since none was given
    assert "administrator" in refused.stderr
    nobody["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    file.write_text(json.dumps(nobody))
    away = crescendo(control_plane, "get", kubeconfig=file)
    assert (away.returncode, "cannot be reached" in away.stderr) == (3, True), away.stderr
    assert "Check the cluster's address (https://127.0.0.1:9)" in away.stderr
    unnamed = crescendo(control_plane, "resume", "--cluster")
    assert (unnamed.returncode, "needs the job's name" in unnamed.stderr) == (2, True), unnamed.stderr
    nowhere = crescendo(control_plane, "submit", RECIPE, "--image", "x", "-n", "nowhere")
    assert (nowhere.returncode, 'namespaces "nowhere" not found' in nowhere.stderr) == (2, True), nowhere.stderr


def test_what_the_api_server_refuses_is_told(control_plane: ControlPlane, namespace: str) -> None:
    long = "a" * 41
    ran = crescendo(control_plane, "submit", RECIPE, "--image", "x", "--name", long, "-n", namespace)
    assert ran.returncode == 2
    assert "at most 40 characters" in ran.stderr
