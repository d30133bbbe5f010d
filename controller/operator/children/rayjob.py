"""The RayJob of one attempt: KubeRay makes head, workers and the submission; the operator alone retries.

`spec.suspend` is left out of what we apply, since it is Kueue's: server-side apply owns only what it names.
"""

from typing import Any, Final

from crescendo.common.errors import ConfigError
from crescendo.controller.operator.children.identity import identity_name
from crescendo.controller.operator.children.inputs import fetch_steps
from crescendo.controller.operator.children.pods import RUN_FILE_MOUNT, labels, run_pod
from crescendo.controller.operator.children.run_file import checked
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import ATTEMPT_LABEL, QUEUE_ANNOTATION, Job, Manifest
from crescendo.controller.operator.size import Pods, first_size, full_size

CONTROLLER_PORT: Final = 8444
PORT_VARIABLE: Final = "CRESCENDO_CONTROLLER_PORT"
RESTARTS: Final = 3
# Take-over, because the operator alone says when an attempt begins: what is left of an earlier one, on a node that does
# not answer, is fenced out.
ENTRYPOINT: Final = f"crescendo run {RUN_FILE_MOUNT}/run.yaml --resume --take-over --plain --restarts {RESTARTS}"
# Trainer and engine of a device share its cores by lease, not by Ray's count.
CPUS_A_DEVICE: Final = 4
MIN_CPUS: Final = 16
# Nothing of ours travels by Ray's object store, which would take a third of a pod's memory; this is about its least.
OBJECT_STORE: Final = str(100 * 2**20)
# Devices are free as soon as a run has ended, when Kueue counts them as free; what it said is in the submitter's log.
KEPT_AFTER_END_S: Final = 0


def ray_job(job: Job, number: int, options: Options) -> Manifest:
    """The manifest of attempt `number`."""
    spec: Manifest = {
        "entrypoint": ENTRYPOINT,
        "submissionMode": "K8sJobMode",
        "backoffLimit": 0,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEPT_AFTER_END_S,
        "submitterConfig": {"backoffLimit": 0},
        "submitterPodTemplate": _submitter(job),
        "rayClusterSpec": _cluster(job, options),
    }
    metadata: Manifest = {
        "name": job.attempt_name(number),
        "namespace": job.namespace,
        "labels": {**labels(job, "rayjob"), ATTEMPT_LABEL: str(number), **job.queue_labels},
        "annotations": {QUEUE_ANNOTATION: job.queue},
        "ownerReferences": [job.owner()],
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def _cluster(job: Job, options: Options) -> Manifest:
    secret = identity_name(job, "controller")
    head = run_pod(job, "head", image=job.spec["image"], devices=0, identity_secret=secret, steps=fetch_steps(job))
    container = head["spec"]["containers"][0]
    container["env"].append({"name": PORT_VARIABLE, "value": str(CONTROLLER_PORT)})
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
        {"name": "client", "containerPort": 10001},
        {"name": "controller", "containerPort": CONTROLLER_PORT},
    ]
    return {
        "rayVersion": options.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", "object-store-memory": OBJECT_STORE},
            "template": head,
        },
        "workerGroupSpecs": [_group(job, name, pods, options) for name, pods in _first_size(job, options).items()],
    }


def _first_size(job: Job, options: Options) -> Pods:
    """Of a run that would be refused: its full size."""
    full = full_size(job)
    if max(full.values()) == 1:
        return full
    try:
        return first_size(job, checked(job, options))
    except ConfigError:
        return full


def _group(job: Job, name: str, replicas: int, options: Options) -> Manifest:
    devices = job.devices_per_node
    cpus = max(MIN_CPUS, CPUS_A_DEVICE * devices)
    parameters: dict[str, Any] = {
        "resources": _marker(name),
        "num-cpus": str(cpus),
        "object-store-memory": OBJECT_STORE,
    }
    template = run_pod(
        job, name, image=job.spec["image"], devices=devices, identity_secret=identity_name(job, "worker")
    )
    if devices and options.rdma_resource:
        _give_rdma(template["spec"]["containers"][0], options.rdma_resource)
    return {
        "groupName": name,
        "replicas": replicas,
        "minReplicas": replicas,
        "maxReplicas": replicas,
        "rayStartParams": parameters,
        "template": template,
    }


def _give_rdma(container: Manifest, resource: str) -> None:
    """A network adapter, and the right to pin memory for it, which Pod Security *restricted* refuses."""
    container["securityContext"]["capabilities"] = {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    for amounts in container["resources"].values():
        amounts[resource] = "1"


def _marker(group: str) -> str:
    """A custom Ray resource that names the group, so that actors find their own nodes when disaggregated."""
    return f'"{{\\"crescendo-{group}\\": 1000}}"'


def _submitter(job: Job) -> Manifest:
    secret = identity_name(job, "controller")
    template = run_pod(job, "head", image=job.spec["image"], devices=0, identity_secret=secret, anywhere=True)
    template["spec"].pop("initContainers", None)  # which a patch of the head's fetch steps leaves here
    container, *_ = template["spec"]["containers"]
    template["spec"]["containers"] = [container]  # one that a patch put beside the head would never end
    container["name"] = "ray-job-submitter"
    container["resources"] = {
        "requests": {"cpu": "100m", "memory": "256Mi"},
        "limits": {"cpu": "1", "memory": "512Mi"},
    }
    keep = {"tmp"}
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] in keep]
    template["spec"]["volumes"] = [volume for volume in template["spec"]["volumes"] if volume["name"] in keep]
    container["env"] = [entry for entry in container["env"] if entry["name"] in ("HOME", "NVIDIA_VISIBLE_DEVICES")]
    template["spec"]["restartPolicy"] = "Never"
    template["metadata"]["labels"] = labels(job, "submitter")
    return template
