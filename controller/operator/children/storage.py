"""What outlives an attempt: the run's volume and the buffer with its volume.

With spec.storage.checkpoints the trainer's checkpoints lie in object storage instead, and workers mount no volume: they
get configuration and model by the store (docs/decisions/0028-checkpoints-in-object-storage.md).

Both volumes carry one storage id and one retention: under `Retain` they stay when the job is deleted, under `Delete`
they go with it. A resumption whose volumes carry different ids is refused (plan.py). The buffer's server always goes
with the job.
"""

from collections.abc import Iterator
from typing import Final

from crescendo.controller.operator.children.pods import (
    claim_name,
    labels,
    metadata,
    patched,
    resources_of,
    restricted_container,
    restricted_pod,
    selector,
)  # fmt: skip
from crescendo.controller.operator.crd import GROUP
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.pairing import STORAGE_ID
from crescendo.controller.operator.resource import Job, Manifest
from crescendo.controller.operator.size import full_size

PASSWORD_OF: Final = f"{GROUP}/password-of"
BUFFER_PORT: Final = 6379
BUFFER_MOUNT: Final = "/data"
PASSWORD_MOUNT: Final = "/etc/buffer"


def storage_problems(job: Job) -> list[str]:
    """Why pods on several nodes could not reach what they need."""
    found = []
    nodes, mode = sum(full_size(job).values()), (job.spec.get("storage") or {}).get("accessMode", "ReadWriteOnce")
    if nodes > 1 and mode != "ReadWriteMany" and not job.checkpoint_store:
        found.append(
            f"spec.storage.accessMode is {mode} with {nodes} nodes in spec.placement: several nodes need accessMode "
            "ReadWriteMany for checkpoints, or object storage: name it in spec.storage.checkpoints.uri"
        )
    widest = max(_engine_sizes(job))
    if job.checkpoint_store and job.devices_per_node and widest > job.devices_per_node:
        found.append(
            f"an engine of spec.run takes {widest} devices (tensorParallel), spec.placement.devicesPerNode is "
            f"{job.devices_per_node}: with spec.storage.checkpoints an engine must fit one pod, since the model "
            "comes to the pods that start one; lower it, or use accessMode ReadWriteMany without checkpoints"
        )
    return found


def _engine_sizes(job: Job) -> Iterator[int]:
    """Devices of an engine, over all stages."""
    run = job.spec["run"]
    yield int((run.get("rollout") or {}).get("tensorParallel", 1))
    for step in run.get("steps") or ():
        for stage in (step.get("rl") or {}).get("stages") or ():
            yield int((stage.get("layout") or {}).get("engineTensorParallel", 0))


def volume_claim(job: Job, storage_id: str) -> Manifest | None:
    """The run's claim, unless the job names one of its own."""
    storage = job.spec.get("storage") or {}
    if job.claim_given:
        return None
    spec: Manifest = {
        "accessModes": [storage.get("accessMode", "ReadWriteOnce")],
        "resources": {"requests": {"storage": storage.get("size", "100Gi")}},
    }
    if storage.get("storageClassName"):
        spec["storageClassName"] = storage["storageClassName"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(job, claim_name(job), "storage", storage_id, owned=not _retains(job)),
        "spec": spec,
    }


def buffer_name(job: Job) -> str:
    """The StatefulSet, the Service and the Secret of the job's own buffer."""
    return f"{job.name}-buffer"


def buffer_service(job: Job, storage_id: str) -> Manifest:
    """The buffer's stable name."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job, buffer_name(job), "buffer", storage_id),
        "spec": {
            "clusterIP": "None",
            "selector": selector(job, "buffer"),
            "ports": [{"name": "redis", "port": BUFFER_PORT}],
        },
    }


def buffer_set(job: Job, storage_id: str, secret_uid: str, options: Options) -> Manifest:
    """A Valkey of the job's own: append-only, never evicting, with a password from a Secret.

    secret_uid: of that Secret. When somebody deleted it and another took its place, the pod is to read the new one.
    """
    about: Manifest = {"labels": labels(job, "buffer"), "annotations": {PASSWORD_OF: secret_uid}}
    template: Manifest = {"metadata": about, "spec": _buffer_pod(job, options)}
    template = patched(template, job, "buffer")
    claim: Manifest = {
        "metadata": {"name": "data", "labels": labels(job, "buffer"), "annotations": {STORAGE_ID: storage_id}},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": (job.spec.get("buffer") or {}).get("size", "10Gi")}},
        },
    }
    storage_class = (job.spec.get("storage") or {}).get("storageClassName")
    if storage_class:
        claim["spec"]["storageClassName"] = storage_class
    retained = "Retain" if _retains(job) else "Delete"
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": _metadata(job, buffer_name(job), "buffer", storage_id),
        "spec": {
            "serviceName": buffer_name(job),
            "replicas": 1,
            "selector": {"matchLabels": selector(job, "buffer")},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": retained, "whenScaled": "Retain"},
            "volumeClaimTemplates": [claim],
            "template": template,
        },
    }


def _buffer_pod(job: Job, options: Options) -> Manifest:
    command = [
        "valkey-server", f"{PASSWORD_MOUNT}/valkey.conf", "--dir", BUFFER_MOUNT,
        "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction",
        "--save", "", "--port", str(BUFFER_PORT), "--bind", "*",
    ]  # fmt: skip
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": restricted_pod(),
        "terminationGracePeriodSeconds": 60,
        "containers": [
            {
                "name": "valkey",
                "image": options.buffer_image or job.spec["image"],
                "imagePullPolicy": job.spec.get("imagePullPolicy", "IfNotPresent"),
                "command": command,
                "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}],
                "ports": [{"name": "redis", "containerPort": BUFFER_PORT}],
                "readinessProbe": {"tcpSocket": {"port": "redis"}, "periodSeconds": 5},
                "resources": resources_of(job, "buffer"),
                "securityContext": restricted_container(),
                "volumeMounts": [
                    {"name": "data", "mountPath": BUFFER_MOUNT},
                    {"name": "config", "mountPath": PASSWORD_MOUNT, "readOnly": True},
                    {"name": "tmp", "mountPath": "/tmp"},
                ],
            }
        ],
        "volumes": [
            {"name": "config", "secret": {"secretName": buffer_name(job), "defaultMode": 0o440}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def _retains(job: Job) -> bool:
    return bool((job.spec.get("storage") or {}).get("retention", "Retain") == "Retain")


def _metadata(job: Job, name: str, component: str, storage_id: str, *, owned: bool = True) -> Manifest:
    found = {**metadata(job, name, component), "annotations": {STORAGE_ID: storage_id}}
    if not owned:
        del found["ownerReferences"]
    return found
