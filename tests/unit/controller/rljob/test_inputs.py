"""Models and data sets by URI: the steps that fetch them, what the run reads, what is refused, what is reported."""

import re
from typing import Any

import pytest

from crescendo.cli.main import parser
from crescendo.common.config import read_mapping
from crescendo.controller.operator.children import ray_job, spec_problems
from crescendo.controller.operator.children.inputs import input_problems
from crescendo.controller.operator.children.run_file import run_file
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.render import to_rljob
from crescendo.controller.operator.resource import FetchStep, Job
from tests.unit.controller.rljob.test_plan import started
from tests.unit.controller.rljob.test_render import QUICKSTART
from tests.unit.controller.rljob.world import START, World

RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}


def job(**spec: Any) -> Job:
    manifest = to_rljob(read_mapping(QUICKSTART), image="crescendo/run:1")
    manifest["spec"]["run"]["data"]["train"] = {"name": "jsonl", "path": "replaced"}
    return Job("math", "team", "uid-1", 1, START, False, {**manifest["spec"], **spec}, {})


def head(**spec: Any) -> dict[str, Any]:
    cluster = ray_job(job(**spec), 1, Options())["spec"]["rayClusterSpec"]
    pod: dict[str, Any] = cluster["headGroupSpec"]["template"]["spec"]
    return pod


def test_each_input_is_fetched_by_a_step_of_its_own_with_its_own_secret() -> None:
    sources = {
        "model": {"uri": "s3://bucket/qwen", "secretRef": {"name": "keys"}},
        "datasets": {"train": {"uri": "pvc://team-data/math/train.jsonl"}},
    }
    pod = head(**sources)
    model, train = pod["initContainers"]
    assert (model["name"], train["name"]) == ("fetch-model", "fetch-train")
    assert model["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert "envFrom" not in train
    assert all("envFrom" not in one for one in pod["containers"])
    assert model["securityContext"] == train["securityContext"] == RESTRICTED
    (claim,) = [one for one in pod["volumes"] if one["name"] == "claim-train"]
    assert claim["persistentVolumeClaim"] == {"claimName": "team-data", "readOnly": True}
    assert [one["mountPath"] for one in train["volumeMounts"] if one.get("readOnly")] == ["/mnt/claims/team-data"]
    options = parser().parse_args([*train["command"][1:], *train["args"]])
    assert (options.uri, options.kind) == ("file:///mnt/claims/team-data/math/train.jsonl", "dataset")
    assert re.fullmatch("/var/lib/crescendo/cache/train-[0-9a-f]{12}", options.target)
    assert options.field == "spec.datasets.train"
    written = run_file(job(**sources), Options())
    assert written["model"]["source"] == f"{model['command'][3]}/files"
    assert written["data"]["train"]["path"] == f"{options.target}/files/**"
    assert input_problems(job(**sources)) == []


def test_jobs_that_share_a_claim_do_not_replace_each_others_inputs() -> None:
    uris = ("s3://bucket/qwen", "s3://bucket/llama", "s3://bucket/qwen")
    folders = [
        head(model={"uri": uri}, storage={"claimName": "ours"})["initContainers"][0]["command"][3] for uri in uris
    ]
    assert folders[0] == folders[2] != folders[1]


def test_only_the_head_fetches() -> None:
    patched = {"spec": {"initContainers": [{"name": "fetch-model", "resources": {"limits": {"cpu": "1"}}}]}}
    patches = [{"component": "head", "template": patched}]
    spec = ray_job(job(model={"uri": "hf://owner/name"}, podPatches=patches), 1, Options())["spec"]
    (step,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["initContainers"]
    assert step["resources"]["limits"]["cpu"] == "1"
    assert "initContainers" not in spec["submitterPodTemplate"]["spec"]
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        assert "initContainers" not in group["template"]["spec"]


def test_a_local_path_is_used_where_it_lies() -> None:
    model = {"uri": "file:///models/qwen"}
    assert "initContainers" not in head(model=model)
    assert run_file(job(model=model), Options())["model"]["source"] == "/models/qwen"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"model": {"uri": "s3://bucket/../other"}}, "spec.model.uri"),
        ({"model": {"uri": "hf://alone"}}, "owner and repository"),
        ({"model": {"uri": "file:///x", "secretRef": {"name": "a"}}}, "spec.model.secretRef"),
        ({"datasets": {"validation": {"uri": "s3://bucket/x"}}}, "spec.run.data.validation.name is 'task'"),
    ],
)
def test_what_cannot_be_fetched_is_refused_before_anything_starts(spec: dict[str, Any], says: str) -> None:
    (problem,) = spec_problems(job(**spec), Options())
    assert says in problem


def pod(**state: Any) -> dict[str, Any]:
    ready = {"name": "fetch-model", "state": {"terminated": {"exitCode": 0}}}
    return {"status": {"initContainerStatuses": [ready, {"name": "fetch-train", **state}]}}


def test_the_step_under_way_is_read_from_the_pod() -> None:
    assert FetchStep.from_pod({}) is None
    assert FetchStep.from_pod(pod(state={"terminated": {"exitCode": 0}})) is None
    assert FetchStep.from_pod(pod(state={"waiting": {"reason": "PodInitializing"}})) is None
    assert FetchStep.from_pod(pod(state={"running": {}})) == FetchStep("fetch-train", 0, "")
    ended = {"terminated": {"exitCode": 2, "message": "progress\nerror: nothing\x1b[31m there.\nfix: correct"}}
    assert FetchStep.from_pod(pod(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ended)) == FetchStep(
        "fetch-train", 2, "nothing [31m there. fix: correct"
    )


def test_a_fetch_is_shown_and_one_that_cannot_succeed_ends_the_job() -> None:
    world = World(spec={"run": {}})
    world.reconcile()
    world.fetch = FetchStep("fetch-model", 0, "")
    world.reconcile()
    assert (world.phase, world.status["reason"]) == ("Starting", "Fetching")
    world.fetch = FetchStep("fetch-model", 75, "s3 did not answer well")
    world.reconcile()
    assert (world.phase, world.status["message"]) == ("Starting", "fetch-model: s3 did not answer well")
    world.fetch = FetchStep("fetch-model", 2, "spec.model is 's3://b/x': there is nothing there.")
    world.reconcile()
    assert (world.condition("Failed"), world.status["reason"], world.attempts) == ("True", "FetchFailed", {})


def test_a_running_job_is_not_asked_for_its_steps() -> None:
    world = started()
    world.fetch = FetchStep("fetch-model", 0, "")
    world.report = None
    world.reconcile()
    assert world.phase == "Running"
