"""A run file becomes an RLJob and comes back; children follow the RLJob."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from crescendo.cli.main import parser
from crescendo.common.config import check_mapping, read_mapping
from crescendo.common.errors import ConfigError
from crescendo.controller import app
from crescendo.controller.operator.children import fixtures, ray_job, spec_problems
from crescendo.controller.operator.children.rayjob import ENTRYPOINT
from crescendo.controller.operator.children.run_file import run_file
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.render import is_rljob, to_rljob, to_run_file
from crescendo.controller.operator.resource import Job
from tests.unit.controller.rljob.world import START

SHARED = Options(
    shared_buffer_url="rediss://admin@redis.example.com:6380/0?ssl_cert_reqs=required",
    shared_buffer_password_file="/etc/crescendo/shared-buffer/password",
)
ROOT = Path(__file__).parents[4]
RECIPES = sorted(ROOT.glob("recipes/*/recipe.yaml"))
QUICKSTART = ROOT / "recipes/quickstart/recipe.yaml"


def job(**spec: Any) -> Job:
    manifest = to_rljob(read_mapping(QUICKSTART), image="crescendo/run:1")
    return Job("math", "team", "uid-1", 1, START, False, {**manifest["spec"], **spec}, {})


def containers(number: int = 1, **spec: Any) -> list[dict[str, Any]]:
    cluster = ray_job(job(**spec), number, Options())["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"]["containers"][0] for group in groups]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_a_run_file_survives_the_way_there_and_back(recipe: Path) -> None:
    before = read_mapping(recipe)
    after = to_run_file(to_rljob(before, image="x"))
    once, twice = check_mapping(before, "before"), check_mapping(after, "after")
    once.run.folder, once.console, once.buffer, once.placement = (
        twice.run.folder, twice.console, twice.buffer, twice.placement,
    )  # fmt: skip
    assert once == twice


@pytest.mark.parametrize(
    ("change", "message", "fix"),
    [
        ({"kind": "RLjob"}, "kind is 'RLjob'; it must be RLJob", "kind: RLJob"),
        ({"apiVersion": "rl.crescendo.dev/v1"}, "apiVersion is 'rl.crescendo.dev/v1'", "rl.crescendo.dev/v1alpha1"),
        ({"spec": {"image": "x"}}, "not an RLJob with spec.run", "kubectl get rljob -o yaml"),
    ],
    ids=["kind", "version", "no-run"],
)
def test_what_is_no_rljob_is_refused(change: dict[str, Any], message: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        to_run_file({**to_rljob(read_mapping(QUICKSTART), image="x"), **change})
    assert fix in refused.value.fix


@pytest.mark.parametrize(
    ("beside", "message", "fix"),
    [
        ({"suspnd": True}, "no spec.suspnd", "suspend"),
        ({"placement": {"mode": "Colocated", "nods": 2}}, "no spec.placement.nods", "nodes"),
        ({"podPatches": [{"component": "head", "patch": {}}]}, r"no spec.podPatches\[\].patch", "component, template"),
        ({"model": {"uri": "hf://owner/name"}}, "spec.model.uri is hf://owner/name", "spec.run.model.source"),
        (
            {"datasets": {"train": {"uri": "s3://a/b"}}},
            "spec.datasets.train.uri is s3://a/b",
            "spec.run.data.train.path",
        ),
        ({"run": {"stepz": []}}, "stepz is not a key", "Did you mean steps?"),
    ],
    ids=["typo", "typo-within", "typo-in-a-list", "fetched-model", "fetched-data", "typo-in-the-run"],
)
def test_an_rljob_that_would_lose_something_on_the_way_back_is_refused(
    beside: dict[str, Any], message: str, fix: str
) -> None:
    rljob = to_rljob(read_mapping(QUICKSTART), image="x")
    rljob["spec"] |= {**beside, "run": {**rljob["spec"]["run"], **beside.get("run", {})}}
    with pytest.raises(ConfigError, match=message) as refused:
        to_run_file(rljob)
    assert fix in refused.value.fix


def test_a_file_without_kind_and_version_is_a_run_file() -> None:
    assert not is_rljob(read_mapping(QUICKSTART))


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/rljob.yaml")), ids=lambda path: path.parent.name)
def test_the_recipes_rljobs_become_run_files(path: Path) -> None:
    assert to_run_file(read_mapping(path))["run"]["name"] == path.parent.name


def test_the_run_file_of_a_job_is_checked_with_what_the_cluster_decides() -> None:
    assert spec_problems(job(), Options()) == ()
    (problem,) = spec_problems(job(run={"steps": []}), Options())
    assert "steps is empty" in problem
    (problem,) = spec_problems(job(run={"model": {"source": "${oc.env:SECRET}"}}), Options())
    assert "crescendo render" in problem


def test_a_shared_buffer_needs_one_in_the_installation() -> None:
    assert "valkey.enabled" in spec_problems(job(buffer={"mode": "Shared"}), Options())[0]
    assert spec_problems(job(buffer={"mode": "Shared"}), SHARED) == ()


def test_a_shared_buffer_is_reached_with_a_login_of_the_jobs_own() -> None:
    one = job(buffer={"mode": "Shared"})
    assert run_file(one, SHARED)["buffer"]["url"] == (
        "rediss://crescendo.retain.team.uid-1@redis.example.com:6380/0?ssl_cert_reqs=required"
        "&password_file=/etc/crescendo/buffer/password"
    )
    head = ray_job(one, 1, SHARED)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "CRESCENDO_RUN_ID", "value": "team.uid-1"} in head["containers"][0]["env"]
    (mounted,) = [volume["secret"] for volume in head["volumes"] if volume["name"] == "buffer"]
    assert mounted["items"] == [{"key": "password", "path": "password"}]
    kinds = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in fixtures(one, SHARED, "uid-of-secret")}
    assert ("StatefulSet", "math-buffer") not in kinds
    (policy,) = [found for found in fixtures(one, SHARED, "uid-of-secret") if found["metadata"]["name"] == "math-ray"]
    assert {"ports": [{"port": 6380, "protocol": "TCP"}]} in policy["spec"]["egress"]


def test_rdma_is_for_gpu_pods_alone_and_off_by_default() -> None:
    gpus = {"placement": {"mode": "Colocated", "nodes": 1, "devicesPerNode": 8}}
    on = Options(rdma_resource="rdma/hca")
    for spec, options, given in ((gpus, on, True), (gpus, Options(), False), ({}, on, False)):
        cluster = ray_job(job(**spec), 1, options)["spec"]["rayClusterSpec"]
        (worker,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
        assert (worker["resources"]["limits"].get("rdma/hca") == "1") is given
        assert ("IPC_LOCK" in worker["securityContext"]["capabilities"].get("add", ())) is given
        assert "IPC_LOCK" not in str(cluster["headGroupSpec"])


@pytest.mark.parametrize("adopted", ["*", "uid}:*", "a" * 65, ""])
def test_storage_that_is_adopted_widens_no_login(adopted: str) -> None:
    one = replace(job(buffer={"mode": "Shared"}), annotations={"rl.crescendo.dev/adopt-storage": adopted})
    assert "must be the uid" in spec_problems(one, SHARED)[0]


@pytest.mark.parametrize(
    "template",
    [
        {"spec": {"serviceAccountName": "admin"}},
        {"spec": {"securityContext": {"runAsUser": 0}}},
        {"spec": {"containers": [{"name": "ray-head", "securityContext": {"privileged": True}}]}},
        {"spec": {"hostNetwork": True}},
        {"spec": {"automountServiceAccountToken": True}},
        {"metadata": {"labels": {"rl.crescendo.dev/job": "another"}}},
    ],
)
def test_a_pod_patch_may_not_touch_identity_or_security(template: dict[str, Any]) -> None:
    (problem,) = spec_problems(job(podPatches=[{"component": "head", "template": template}]), Options())
    assert "may not be set" in problem


def test_a_pod_patch_merges_by_name() -> None:
    template = {"spec": {"containers": [{"name": "ray-worker", "env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}]}}
    head, worker = containers(podPatches=[{"component": "worker", "template": template}])
    names = [entry["name"] for entry in worker["env"]]
    assert "NCCL_DEBUG" in names
    assert "HOME" in names
    assert "NCCL_DEBUG" not in [entry["name"] for entry in head["env"]]


def test_gpus_go_to_workers_and_are_hidden_elsewhere() -> None:
    head, worker = containers(placement={"mode": "Colocated", "nodes": 2, "devicesPerNode": 8})
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in head["env"]
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} not in worker["env"]


def test_on_a_volume_of_one_node_the_worker_chooses_the_node_and_the_head_follows() -> None:
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    placement = {"nodes": 1, "devicesPerNode": 8, "tolerations": tolerations, "runtimeClassName": "nvidia"}
    spec = ray_job(job(placement=placement), 1, Options())["spec"]
    cluster = spec["rayClusterSpec"]
    head, worker = (group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]))
    followed = []
    for pod in (head, worker):
        (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["labelSelector"]["matchLabels"] == {"rl.crescendo.dev/job": "math"}
        followed.append(term["labelSelector"]["matchExpressions"][0]["values"])
    assert followed == [["worker", "rollout"], ["head", "worker", "rollout"]]
    assert head["tolerations"] == worker["tolerations"] == tolerations
    assert "runtimeClassName" not in head
    assert not {"affinity", "tolerations"} & set(spec["submitterPodTemplate"]["spec"])


def test_on_a_volume_of_many_nodes_pods_go_where_there_is_room() -> None:
    shared = job(placement={"nodes": 2, "devicesPerNode": 8}, storage={"accessMode": "ReadWriteMany"})
    cluster = ray_job(shared, 1, Options())["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert "affinity" not in group["template"]["spec"]


def test_disaggregated_engines_have_a_group_of_their_own() -> None:
    manifest = ray_job(job(placement={"mode": "Disaggregated", "nodes": 2, "rolloutNodes": 3}), 4, Options())
    groups = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [(group["groupName"], group["replicas"]) for group in groups] == [("worker", 2), ("rollout", 3)]
    for group in groups:
        assert f"crescendo-{group['groupName']}" in group["rayStartParams"]["resources"]
    assert manifest["metadata"]["name"] == "math-4"
    assert manifest["spec"]["backoffLimit"] == 0


def test_disaggregated_engines_are_sized_by_themselves_and_get_weights_over_the_network() -> None:
    placement = {"mode": "Disaggregated", "nodes": 1, "rolloutNodes": 2, "devicesPerNode": 4}
    sizes = {"worker": {"memory": "64Gi"}, "rollout": {"memory": "32Gi", "sharedMemory": "16Gi"}}
    apart = job(placement=placement, resources=sizes)
    groups = ray_job(apart, 1, Options())["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pods = [group["template"]["spec"] for group in groups]
    assert [pod["containers"][0]["resources"]["limits"]["memory"] for pod in pods] == ["64Gi", "32Gi"]
    assert [pod["volumes"][4]["emptyDir"]["sizeLimit"] for pod in pods] == ["2Gi", "16Gi"]
    config = check_mapping(run_file(apart, Options()), "run.yaml")
    assert (config.placement.name, config.trainer.weight_channel) == ("disaggregated", "tcp")
    assert (config.placement.num_devices, config.placement.rollout_devices) == (12, 8)
    (ray,) = [one for one in fixtures(apart, Options(), "uid-of-secret") if one["metadata"]["name"] == "math-ray"]
    assert {"worker", "rollout"} <= set(
        ray["spec"]["ingress"][0]["from"][0]["podSelector"]["matchExpressions"][0]["values"]
    )
    on_cores = check_mapping(run_file(job(placement={**placement, "devicesPerNode": 0}), Options()), "run.yaml")
    assert (on_cores.placement.device, on_cores.placement.num_devices) == ("cpu", 3)


def test_a_run_apart_becomes_an_rljob_and_comes_back() -> None:
    run = {
        **job().spec["run"],
        "placement": {"name": "disaggregated", "device": "gpu", "num_devices": 12, "rollout_devices": 8},
    }
    run["run"] = {"name": "math"}
    run["trainer"] = {"weight_channel": "tcp", "data_parallel": 4}
    run["rollout"] = {"num_engines": 8}
    rendered = to_rljob(run, image="any")
    assert rendered["spec"]["placement"] == {
        "mode": "Disaggregated",
        "nodes": 1,
        "rolloutNodes": 2,
        "devicesPerNode": 4,
    }
    assert to_run_file(rendered)["placement"] == run["placement"]
    assert spec_problems(Job("math", "team", "uid-1", 1, START, False, rendered["spec"], {}), Options()) == ()


@pytest.mark.parametrize(
    ("devices", "nodes", "per_node"), [(1, 1, 1), (6, 1, 6), (8, 1, 8), (12, 2, 6), (32, 4, 8), (11, 11, 1)]
)
def test_a_run_on_many_gpus_is_put_on_nodes_that_there_are(devices: int, nodes: int, per_node: int) -> None:
    run = {**job().spec["run"], "run": {"name": "math"}, "placement": {"device": "gpu", "num_devices": devices}}
    rendered = to_rljob(run, image="any")
    assert rendered["spec"]["placement"] == {"mode": "Colocated", "nodes": nodes, "devicesPerNode": per_node}
    assert ("storage" in rendered["spec"]) == (nodes > 1)
    assert to_run_file(rendered)["placement"]["num_devices"] == devices


def test_a_job_takes_over_no_account_of_its_name() -> None:
    manifests = [*fixtures(job(), Options(), "uid-of-secret"), ray_job(job(), 1, Options())]
    assert "math" not in {one["metadata"]["name"] for one in manifests}
    (account,) = [one["metadata"]["name"] for one in manifests if one["kind"] == "ServiceAccount"]
    spec = manifests[-1]["spec"]
    groups = (spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"])
    pods = [*(group["template"]["spec"] for group in groups), spec["submitterPodTemplate"]["spec"]]
    assert {pod["serviceAccountName"] for pod in pods} == {account}


def test_a_patch_of_the_head_leaves_the_submitter_alone() -> None:
    mount = {"name": "run", "mountPath": "/logs"}
    beside = {"name": "log-shipper", "image": "shipper:1", "volumeMounts": [mount]}
    patch = {"component": "head", "template": {"spec": {"containers": [beside]}}}
    spec = ray_job(job(podPatches=[patch]), 1, Options())["spec"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert [one["name"] for one in head["containers"]] == ["ray-head", "log-shipper"]
    assert [one["name"] for one in spec["submitterPodTemplate"]["spec"]["containers"]] == ["ray-job-submitter"]


def test_kueue_keeps_the_suspension_of_a_queued_job() -> None:
    manifest = ray_job(job(queue={"name": "gpus"}), 1, Options())
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "suspend" not in manifest["spec"]


def test_retained_volumes_have_no_owner_and_others_do() -> None:
    for retention, owned in (("Retain", False), ("Delete", True)):
        claims = [
            manifest
            for manifest in fixtures(job(storage={"retention": retention}), Options(), "uid-of-secret")
            if manifest["kind"] == "PersistentVolumeClaim"
        ]
        assert [("ownerReferences" in claim["metadata"]) for claim in claims] == [owned]


def test_the_mounted_run_file_is_a_run_file() -> None:
    (found,) = [one for one in fixtures(job(), Options(), "uid-of-secret") if one["kind"] == "ConfigMap"]
    config = check_mapping(yaml.safe_load(found["data"]["run.yaml"]), "run.yaml")
    assert (config.run.name, config.buffer.name, config.placement.device) == ("math", "external", "cpu")
    assert config.buffer.url == "redis://math-buffer.team.svc:6379/0?password_file=/etc/crescendo/buffer/password"
    assert config.reward_service.address == ""


def test_the_run_uses_the_platforms_reward_service_and_a_channel_between_pods() -> None:
    options = Options(reward_address="crescendo-reward.crescendo-system.svc:8446")
    spread = job(placement={"mode": "Colocated", "nodes": 2, "devicesPerNode": 8})
    config = check_mapping(run_file(spread, options), "run.yaml")
    assert config.reward_service.address == options.reward_address
    assert (config.trainer.weight_channel, config.placement.num_devices) == ("tcp", 16)
    assert check_mapping(run_file(job(), options), "run.yaml").trainer.weight_channel == "shm"


def test_head_and_workers_hold_the_buffers_password_and_the_head_a_fixed_port() -> None:
    head, worker = containers()
    for container in (head, worker):
        assert {"name": "buffer", "mountPath": "/etc/crescendo/buffer", "readOnly": True} in container["volumeMounts"]
    assert {"name": app.PORT_VARIABLE, "value": "8444"} in head["env"]


def test_the_entrypoint_is_a_command_that_there_is() -> None:
    options = parser().parse_args(shlex.split(ENTRYPOINT)[1:])
    assert (options.recipe, options.resume, options.take_over) == ("/etc/crescendo/job/run.yaml", True, True)


def test_only_the_runs_own_pods_reach_its_buffer() -> None:
    policies = {
        one["metadata"]["name"]: one
        for one in fixtures(job(), Options(), "uid-of-secret")
        if one["kind"] == "NetworkPolicy"
    }
    (rule,) = policies["math-buffer"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": 6379, "protocol": "TCP"}]
    assert rule["from"][0]["podSelector"]["matchLabels"] == {"rl.crescendo.dev/job": "math"}
    assert policies["math-buffer"]["spec"]["egress"] == []


@pytest.mark.parametrize(
    ("network", "ports"),
    [({}, [443]), ({"network": {}}, [443]), ({"network": {"egressPorts": [9000, 443, 8080]}}, [443, 8080, 9000])],
)
def test_a_run_gets_out_by_https_and_by_the_ports_that_it_names(network: dict[str, Any], ports: list[int]) -> None:
    policies = {
        one["metadata"]["name"]: one["spec"]
        for one in fixtures(job(**network), Options(), "uid-of-secret")
        if one["kind"] == "NetworkPolicy"
    }
    anywhere = [rule for rule in policies["math-ray"]["egress"] if "to" not in rule]
    assert anywhere == [{"ports": [{"port": port, "protocol": "TCP"} for port in ports]}]
    assert policies["math-buffer"]["egress"] == []
