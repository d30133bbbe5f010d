"""The run file of a job: spec.run, with what the cluster decides filled in, as `crescendo run` reads it.

The buffer's password is not in it: the URL names the file that the password's Secret is mounted as.
"""

import copy
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import yaml

from crescendo.common.config import Config, check_mapping
from crescendo.common.config.tree import camel_case
from crescendo.common.errors import ConfigError
from crescendo.controller.operator.children.inputs import inputs
from crescendo.controller.operator.children.pods import (
    BUFFER_PASSWORD_MOUNT,
    RUN_FOLDER_MOUNT,
    STORE_KEYS_MOUNT,
    metadata,
)
from crescendo.controller.operator.children.storage import BUFFER_PORT
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.quantity import quantity_bytes
from crescendo.controller.operator.resource import Job, Manifest
from crescendo.controller.operator.shared_buffer import is_shared, job_url
from crescendo.controller.operator.size import ROLLOUT, devices_per_pod, full_size

GIB: Final = 2**30


def run_file(job: Job, options: Options) -> Manifest:
    """The run as a mapping, keys in camelCase."""
    run = copy.deepcopy(dict(job.spec["run"]))
    run["run"] = {**run.get("run", {}), "name": job.name, "folder": RUN_FOLDER_MOUNT}
    run["buffer"] = {"name": "external", "url": buffer_url(job, options)}
    run["console"] = {"enabled": False}
    run["placement"] = _placement(job)
    if options.reward_address:
        run["rewardService"] = {**run.get("rewardService", {}), "address": options.reward_address}
    if sum(full_size(job).values()) > 1 and run.get("trainer", {}).get("weightChannel", "shm") == "shm":
        run["trainer"] = {**run.get("trainer", {}), "weightChannel": "tcp"}  # pods share no memory
    if job.checkpoint_store:
        keys = STORE_KEYS_MOUNT if job.checkpoint_store.get("secretRef") else ""
        run["checkpointStore"] = {"url": job.checkpoint_store["uri"], "credentials": keys, "carriesInputs": True}
    for one in inputs(job):
        _set(run, one.run_path, one.value)
    return run


def buffer_url(job: Job, options: Options) -> str:
    """Where the run's buffer is."""
    if is_shared(job):
        return job_url(job, options, f"{BUFFER_PASSWORD_MOUNT}/password")
    host = f"{job.name}-buffer.{job.namespace}.svc"
    return f"redis://{host}:{BUFFER_PORT}/0?password_file={BUFFER_PASSWORD_MOUNT}/password"


def _placement(job: Job) -> Manifest:
    pods, per_pod = full_size(job), devices_per_pod(job)
    found: Manifest = {
        "device": "gpu" if job.devices else "cpu",
        "name": "disaggregated" if ROLLOUT in pods else "colocated",
        camel_case("num_devices"): per_pod * sum(pods.values()),
    }
    if ROLLOUT in pods:
        found[camel_case("rollout_devices")] = per_pod * pods[ROLLOUT]
    memory = quantity_bytes(str(job.placement.get("deviceMemory", "")))
    if job.devices and memory:
        found[camel_case("device_memory_gib")] = memory / GIB
    return found


def _set(tree: Manifest, path: str, value: str) -> None:
    *parents, last = path.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value


def config_map(job: Job, options: Options) -> Manifest:
    """The ConfigMap that head and workers mount."""
    text = yaml.safe_dump(run_file(job, options), sort_keys=False)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(job, f"{job.name}-run", "run"),
        "data": {"run.yaml": text},
    }


def checked(job: Job, options: Options) -> Config:
    """The run as its services will read it, not to be changed; kept, since a check takes long. Raises ConfigError."""
    return _checked(json.dumps(run_file(job, options)))


@lru_cache(maxsize=64)
def _checked(run: str) -> Config:
    return check_mapping(json.loads(run), "spec.run")


def problems(job: Job, options: Options) -> list[str]:
    """What `crescendo config check` would say of the run, and references, which the operator does not resolve."""
    if _has_reference(job.spec["run"]):
        return ["spec.run contains ${...}; an RLJob takes plain values: `crescendo render FILE` writes them out"]
    try:
        checked(job, options)
    except ConfigError as error:
        return [str(error)]
    return []


def _has_reference(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_reference(child) for child in value.values())
    if isinstance(value, list):
        return any(map(_has_reference, value))
    return isinstance(value, str) and "${" in value
