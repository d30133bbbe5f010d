"""How many pods each worker group of a job has: at its beginning, and while stages come and go. Pure.

    group     pods when mode is Colocated        Disaggregated
    worker    nodes: trainer and engines         nodes: the trainer's
    rollout   -                                  rolloutNodes: the engines'

`placement` says the most there may be. A stage with a device count needs fewer: an attempt begins with what the stage
needs that the job was last seen in, and the running controller says what it needs from then on. What it says is not
trusted: a group never grows beyond `placement`. An attempt with a queue begins at full size, because Kueue admits a
RayJob as it was created and would not see it grow; what the stage does not need goes, and its quota stays reserved.
"""

from collections.abc import Mapping
from typing import Final

from crescendo.common.config.layouts import has_device_counts, layout_of, stage_at
from crescendo.common.config.schema import Config
from crescendo.controller.operator.resource import Job, Report

WORKER: Final = "worker"
ROLLOUT: Final = "rollout"
Pods = Mapping[str, int]


def devices_per_pod(job: Job) -> int:
    """GPUs; on CPU a pod counts as one device."""
    return max(1, job.devices_per_node)


def full_size(job: Job) -> Pods:
    """Pods by group, as `placement` allows."""
    found = {WORKER: int(job.placement.get("nodes", 1))}
    if job.placement.get("mode") == "Disaggregated":
        found[ROLLOUT] = int(job.placement.get("rolloutNodes", 1))
    return found


def wanted_size(job: Job, report: Report) -> Pods:
    """Pods that the running controller needs; empty where it does not say."""
    return _size(job, {WORKER: report.stage_devices, ROLLOUT: report.stage_rollout_devices})


def first_size(job: Job, config: Config) -> Pods:
    """Pods that an attempt begins with. config: of the job's run."""
    if job.queue_labels or not has_device_counts(config):
        return full_size(job)
    stage = stage_at(config, 0, str((job.status.get("progress") or {}).get("stage", "")))
    layout = layout_of(config, stage)
    return {**full_size(job), **_size(job, {WORKER: layout.trainer_devices, ROLLOUT: layout.rollout_devices})}


def _size(job: Job, devices: Mapping[str, int]) -> Pods:
    per_pod = devices_per_pod(job)
    full = full_size(job)
    return {group: min(most, -(-devices[group] // per_pod)) for group, most in full.items() if devices[group] > 0}
