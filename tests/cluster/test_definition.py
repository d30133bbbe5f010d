"""The RLJob definition on a real API server: what it fills in, refuses and explains."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.jobs import ROOT, JobView, quickstart, refusal, volumes
from tests.cluster.kube.control_plane import ControlPlane, KubectlError
from tests.cluster.operator_process import Operator

pytestmark = pytest.mark.timeout(600)


def test_a_recipe_is_taken_and_defaults_are_filled_in(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.apply(quickstart("math", namespace))
    spec = JobView(control_plane, "math", namespace).body()["spec"]
    assert spec["placement"] == {
        "mode": "Colocated",
        "nodes": 1,
        "devicesPerNode": 0,
        "deviceResource": "nvidia.com/gpu",
    }
    assert spec["backoffLimit"] == 3
    assert spec["run"]["rollout"]["leaseS"] == 60.0


def stages(job: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = job["spec"]["run"]["steps"][1]["rl"]["stages"]
    return found


def shrink(job: dict[str, Any]) -> None:
    stages(job)[1]["maxResponseTokens"] = 8
    stages(job)[1]["tokenBudget"] = 8


def one_sample(job: dict[str, Any]) -> None:
    stages(job)[0]["samplesPerPrompt"] = 1


def uneven(job: dict[str, Any]) -> None:
    job["spec"]["placement"] = {"nodes": 1, "devicesPerNode": 3}
    job["spec"]["run"]["trainer"] = {"tensorParallel": 2}


def no_rollout_nodes(job: dict[str, Any]) -> None:
    job["spec"]["placement"] = {"mode": "Disaggregated"}


def sidecar(job: dict[str, Any]) -> None:
    job["spec"]["placement"] = {"mode": "Sidecar"}


def two_nodes(job: dict[str, Any]) -> None:
    job["spec"]["placement"] = {"nodes": 2}


def half_a_pair(job: dict[str, Any]) -> None:
    job["spec"]["storage"] = {"claimName": "ours", "retention": "Delete"}


def disk_without_a_shared_folder(job: dict[str, Any]) -> None:
    job["spec"]["storage"] = {"checkpoints": {"uri": "s3://runs"}}
    job["spec"]["run"]["trainer"] = {"weightChannel": "disk"}


def checkpoints_nowhere(job: dict[str, Any]) -> None:
    job["spec"]["storage"] = {"checkpoints": {"uri": "memory://runs"}}


def bad_uri(job: dict[str, Any]) -> None:
    job["spec"]["model"] = {"uri": "ftp://models/qwen"}


def no_such_port(job: dict[str, Any]) -> None:
    job["spec"]["network"] = {"egressPorts": [0]}


def a_port_twice(job: dict[str, Any]) -> None:
    job["spec"]["network"] = {"egressPorts": [9000, 9000]}


def another_account(job: dict[str, Any]) -> None:
    job["spec"]["podPatches"] = [{"component": "head", "template": {"spec": {"serviceAccountName": "admin"}}}]


def root_container(job: dict[str, Any]) -> None:
    container = {"name": "ray-head", "securityContext": {"runAsUser": 0}}
    job["spec"]["podPatches"] = [{"component": "head", "template": {"spec": {"containers": [container]}}}]


def no_such_stage(job: dict[str, Any]) -> None:
    job["spec"]["promoteTo"] = "nowhere"


def channel_within_a_gpu(job: dict[str, Any]) -> None:
    job["spec"]["placement"] = {"mode": "Disaggregated", "rolloutNodes": 1}
    job["spec"]["storage"] = {"accessMode": "ReadWriteMany"}
    job["spec"]["run"]["trainer"] = {"weightChannel": "ipc"}


def unknown_manager(job: dict[str, Any]) -> None:
    job["spec"]["managedBy"] = "me"


def no_run(job: dict[str, Any]) -> None:
    del job["spec"]["run"]


def unknown_gate(job: dict[str, Any]) -> None:
    stages(job)[0]["gate"] = {"name": "luck"}


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shrink, "contexts only grow"),
        (one_sample, "samplesPerPrompt must be at least 2"),
        (uneven, "must divide nodes x devicesPerNode"),
        (no_rollout_nodes, "rolloutNodes is set exactly when mode is Disaggregated"),
        (sidecar, "Sidecar is reserved"),
        (two_nodes, "several nodes need accessMode ReadWriteMany"),
        (half_a_pair, "they are a pair"),
        (two_nodes, "name it in spec.storage.checkpoints.uri"),
        (disk_without_a_shared_folder, "weightChannel disk needs a folder that all pods share"),
        (checkpoints_nowhere, "spec.storage.checkpoints.uri"),
        (bad_uri, "spec.model.uri"),
        (another_account, "podPatches may set no service account"),
        (root_container, "podPatches may set no service account, no securityContext"),
        (no_such_stage, "promoteTo names no stage"),
        (channel_within_a_gpu, "weightChannel ipc stays within a GPU"),
        (unknown_manager, "unknown manager"),
        (no_such_port, "spec.network.egressPorts[0]"),
        (a_port_twice, "spec.network.egressPorts[1]: Duplicate value"),
        (no_run, "spec.run: Required value"),
        (unknown_gate, "gate.name: Unsupported value"),
    ],
)
def test_what_cannot_run_is_refused_with_its_reason(
    control_plane: ControlPlane, namespace: str, break_it: Any, message: str
) -> None:
    job = quickstart("math", namespace)
    break_it(job)
    assert message in refusal(control_plane, job)


def test_what_patches_may_set_is_kept_as_it_was_given(control_plane: ControlPlane, namespace: str) -> None:
    container = {
        "name": "ray-head",
        "env": [{"name": "A", "value": "1"}],
        "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
    }
    template = {"metadata": {"annotations": {"a": "b"}}, "spec": {"containers": [container], "dnsPolicy": "Default"}}
    patches = [{"component": "head", "template": template}]
    control_plane.apply(quickstart("math", namespace, podPatches=patches, promoteTo="context-64"))
    assert JobView(control_plane, "math", namespace).body()["spec"]["podPatches"] == patches


@pytest.mark.parametrize("storage", [{"accessMode": "ReadWriteMany"}, {"checkpoints": {"uri": "s3://runs/team"}}])
def test_several_nodes_share_a_volume_or_have_object_storage(
    control_plane: ControlPlane, namespace: str, storage: dict[str, Any]
) -> None:
    job = quickstart("math", namespace, placement={"nodes": 2}, storage=storage)
    assert refusal(control_plane, job) == ""


def test_a_typo_is_refused(control_plane: ControlPlane, namespace: str) -> None:
    job = quickstart("math", namespace)
    stages(job)[0]["maxResponseTokenz"] = 8
    text = json.dumps(job)
    with pytest.raises(KubectlError, match=r"unknown field.*maxResponseTokenz"):
        control_plane.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)


def test_a_name_too_long_for_its_children_is_refused(control_plane: ControlPlane, namespace: str) -> None:
    assert "at most 40 characters" in refusal(control_plane, quickstart("a" * 41, namespace))
    assert refusal(control_plane, quickstart("a" * 40, namespace)) == ""


@pytest.mark.parametrize(
    "change",
    [{"image": "other"}, {"run": {"run": {"seed": 7}}}, {"placement": {"nodes": 2}}, {"storage": {"size": "1Gi"}}],
    ids=lambda change: next(iter(change)),
)
def test_what_a_run_is_made_of_is_fixed(control_plane: ControlPlane, namespace: str, change: dict[str, Any]) -> None:
    control_plane.apply(quickstart("math", namespace))
    with pytest.raises(KubectlError, match="are fixed: create a new RLJob"):
        JobView(control_plane, "math", namespace).patch(**change)


def test_what_steers_it_may_change(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.apply(quickstart("math", namespace))
    job = JobView(control_plane, "math", namespace)
    job.patch(suspend=True, promoteTo="context-64", ttlSecondsAfterFinished=60, activeDeadlineSeconds=100)
    assert job.body()["spec"]["promoteTo"] == "context-64"


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("recipes/*/rljob.yaml")), ids=lambda path: path.parent.name)
def test_recipes_at_their_real_size_pass_a_dry_run(control_plane: ControlPlane, namespace: str, recipe: Path) -> None:
    job = yaml.safe_load(recipe.read_text())
    job["metadata"]["namespace"] = namespace
    text = json.dumps(job)
    answer = control_plane.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
    assert "created (server dry run)" in answer


def test_explain_teaches(control_plane: ControlPlane) -> None:
    text = control_plane.kubectl("explain", "rljob.spec.run.steps.rl.stages")
    assert "maxResponseTokens" in text
    assert "Limit on a whole response. Unit: tokens." in " ".join(text.split())


def test_the_columns_are_there(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.apply(quickstart("math", namespace))
    plain = control_plane.kubectl("get", "rljob", "-n", namespace).splitlines()[0].split()
    assert plain == ["NAME", "PHASE", "STAGE", "ITER", "REWARD", "LENGTH", "GPUS", "READY", "RESTARTS", "AGE"]
    wide = control_plane.kubectl("get", "rljob", "-n", namespace, "-o", "wide").splitlines()[0].split()
    assert wide[-6:] == ["MODE", "QUEUE", "CLUSTER", "CHECKPOINT", "ETA", "REASON"]


@pytest.fixture
def definition(control_plane: ControlPlane) -> Iterator[dict[str, Any]]:
    """The definition as one may apply it; applied again afterwards."""
    found = control_plane.get("crd", "rljobs.rl.crescendo.dev")
    for name in ("managedFields", "resourceVersion", "uid", "generation", "creationTimestamp"):
        found["metadata"].pop(name, None)
    found.pop("status")
    yield found
    control_plane.apply(found)


def properties(definition: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return dict(found["properties"])


def changed(definition: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(definition)
    found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"] = fields
    return found


def test_the_definition_can_be_applied_again_over_stored_jobs(
    control_plane: ControlPlane, namespace: str, definition: dict[str, Any]
) -> None:
    control_plane.apply(quickstart("math", namespace))
    before = JobView(control_plane, "math", namespace).body()["spec"]
    note = {"note": {"type": "string", "maxLength": 10}}
    control_plane.apply(changed(definition, properties(definition) | note))
    assert JobView(control_plane, "math", namespace).body()["spec"] == before


def test_a_job_stored_under_an_older_definition_lives_under_the_new_one(
    control_plane: ControlPlane,
    namespace: str,
    definition: dict[str, Any],
    operator: Operator,
    eventually: Callable[..., None],
) -> None:
    newer = ("backoffLimit", "suspendDeadlineSeconds")
    older = {name: schema for name, schema in properties(definition).items() if name not in newer}
    control_plane.apply(changed(definition, older))
    eventually("the older one counts", lambda: not served(control_plane, "backoffLimit"))
    volumes(control_plane, namespace)
    control_plane.apply(quickstart("math", namespace, suspend=True))
    job = JobView(control_plane, "math", namespace)
    assert not set(newer) & set(job.body()["spec"])
    control_plane.apply(definition)
    eventually("the newer one counts", lambda: served(control_plane, "backoffLimit"))
    eventually("defaults are filled in", lambda: job.body()["spec"].get("backoffLimit") == 3)
    job.patch(suspend=False)
    eventually("it runs", lambda: job.children("rayjob") == ["math-1"], 60)


def served(plane: ControlPlane, field: str) -> bool:
    """Whether the API server explains a field of the spec."""
    return field in plane.kubectl("explain", "rljob.spec")
