"""What outlives an attempt: the run's volume and the buffer with its volume.

Both volumes carry one storage id and one retention: under `Retain` they stay when the job is deleted, under `Delete`
they go with it. A resumption whose volumes carry different ids is refused (plan.py). The buffer's server always goes
with the job.
"""

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
from crescendo.controller.operator.resource import Job, Manifest

STORAGE_ID: Final = f"{GROUP}/storage-id"
BUFFER_PORT: Final = 6379
BUFFER_MOUNT: Final = "/data"
PASSWORD_MOUNT: Final = "/etc/buffer"


def volume_claim(job: Job, storage_id: str) -> Manifest | None:
    """The run's claim, unless the job names one of its own."""
    storage = job.spec.get("storage") or {}
    if storage.get("claimName"):
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


def buffer_set(job: Job, storage_id: str, options: Options) -> Manifest:
    """A Valkey of the job's own: append-only, never evicting, with a password from a Secret."""
    template: Manifest = {"metadata": {"labels": labels(job, "buffer")}, "spec": _buffer_pod(job, options)}
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
