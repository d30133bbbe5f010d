"""Checkpoints in object storage: what pods mount, what the run reads, where they may run, what is refused."""

from typing import Any

import pytest

from crescendo.common.config import check_mapping, read_mapping
from crescendo.controller.operator.children import ray_job, spec_problems
from crescendo.controller.operator.children.run_file import run_file
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.render import to_rljob, to_run_file
from crescendo.controller.operator.resource import Job
from tests.unit.controller.rljob.test_render import QUICKSTART
from tests.unit.controller.rljob.world import START

STORE = {"uri": "s3://runs/team", "secretRef": {"name": "store"}}
NODES = {"mode": "Colocated", "nodes": 2, "devicesPerNode": 0}
KEYS = {"name": "store-keys", "mountPath": "/etc/crescendo/store", "readOnly": True}


def job(**spec: Any) -> Job:
    manifest = to_rljob(read_mapping(QUICKSTART), image="crescendo/run:1")
    return Job("math", "team", "uid-1", 1, START, False, {**manifest["spec"], **spec}, {})


def pods(of: Job) -> dict[str, dict[str, Any]]:
    spec = ray_job(of, 1, Options())["spec"]
    found = {group["groupName"]: group["template"]["spec"] for group in spec["rayClusterSpec"]["workerGroupSpecs"]}
    found["head"] = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    found["submitter"] = spec["submitterPodTemplate"]["spec"]
    return found


def run_volume(pod: dict[str, Any]) -> dict[str, Any]:
    (volume,) = [one for one in pod["volumes"] if one["name"] == "run"]
    return dict(volume)


def test_workers_mount_no_volume_of_the_run_and_may_run_on_any_node() -> None:
    found = pods(job(storage={"checkpoints": STORE}, placement=NODES))
    assert run_volume(found["head"]) == {"name": "run", "persistentVolumeClaim": {"claimName": "math-run"}}
    assert run_volume(found["worker"]) == {"name": "run", "emptyDir": {}}
    assert "affinity" not in found["worker"]
    assert "affinity" not in found["head"]
    without = pods(job())
    assert run_volume(without["worker"]) == run_volume(without["head"])
    assert "affinity" in without["worker"]


def test_keys_are_files_of_the_run_and_nothing_else_has_them() -> None:
    found = pods(job(storage={"checkpoints": STORE}))
    for name in ("head", "worker"):
        (container,) = found[name]["containers"]
        assert KEYS in container["volumeMounts"]
        assert {"name": "store-keys", "secret": {"secretName": "store", "defaultMode": 0o440}} in found[name]["volumes"]
        assert "envFrom" not in container
    assert "store" not in str(found["submitter"])
    open_store = pods(job(storage={"checkpoints": {"uri": "s3://runs"}}))
    assert "store-keys" not in str(open_store)


def test_the_run_reads_where_the_store_is_and_keeps_its_id_on_an_emptied_volume() -> None:
    stored = job(storage={"checkpoints": STORE})
    config = check_mapping(run_file(stored, Options()), "spec.run")
    assert vars(config.checkpoint_store) == {
        "url": "s3://runs/team", "credentials": "/etc/crescendo/store", "carries_inputs": True
    }  # fmt: skip
    (container,) = pods(stored)["head"]["containers"]
    assert {"name": "CRESCENDO_RUN_ID", "value": "team.uid-1"} in container["env"]
    assert "CRESCENDO_RUN_ID" not in str(pods(job()))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"placement": NODES}, "spec.storage.accessMode is ReadWriteOnce with 2 nodes"),
        (
            {"placement": {**NODES, "nodes": 1, "mode": "Disaggregated", "rolloutNodes": 1}},
            "spec.storage.checkpoints.uri",
        ),
        ({"storage": {"accessMode": "ReadWriteMany"}, "placement": NODES}, ""),
        ({"storage": {"checkpoints": STORE}, "placement": NODES}, ""),
    ],
)
def test_several_nodes_need_a_volume_that_they_share_or_a_store(spec: dict[str, Any], says: str) -> None:
    problems = " ".join(spec_problems(job(**spec), Options()))
    assert says in problems
    assert bool(says) == bool(problems)


def test_channels_and_engines_that_need_a_shared_folder_are_refused_with_a_store() -> None:
    stored = job(storage={"checkpoints": STORE})
    stored.spec["run"]["trainer"] = {"weightChannel": "disk"}
    assert "checkpoint_store.carries_inputs" in " ".join(spec_problems(stored, Options()))
    wide = job(storage={"checkpoints": STORE}, placement={**NODES, "devicesPerNode": 2})
    wide.spec["run"]["rollout"]["tensorParallel"] = 4
    assert "an engine must fit one pod" in " ".join(spec_problems(wide, Options()))


def test_a_store_goes_from_a_run_file_to_an_rljob_and_back() -> None:
    run = {**read_mapping(QUICKSTART), "checkpoint_store": {"url": "s3://runs/team"}}
    manifest = to_rljob(run, image="crescendo/run:1")
    assert manifest["spec"]["storage"] == {"checkpoints": {"uri": "s3://runs/team"}}
    assert "checkpointStore" not in manifest["spec"]["run"]
    assert to_run_file(manifest)["checkpoint_store"] == {"url": "s3://runs/team"}
