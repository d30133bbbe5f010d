"""Pod templates of a run: what Pod Security *restricted* asks for, volumes, environment, and people's patches."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from crescendo.common.runfolder import RUN_ID_VARIABLE
from crescendo.controller.operator.crd import GROUP
from crescendo.controller.operator.resource import COMPONENT_LABEL, JOB_LABEL, Job, Manifest
from crescendo.controller.operator.shared_buffer import is_shared, run_id
from crescendo.controller.operator.size import ROLLOUT, WORKER

RUN_FOLDER_MOUNT: Final = "/var/lib/crescendo"
RUN_FILE_MOUNT: Final = "/etc/crescendo/job"
IDENTITY_MOUNT: Final = "/etc/crescendo/identity"
BUFFER_PASSWORD_MOUNT: Final = "/etc/crescendo/buffer"
STORE_KEYS_MOUNT: Final = "/etc/crescendo/store"
USER_ID: Final = 1000
PROTECTED: Final = (
    "automountServiceAccountToken", "serviceAccountName", "serviceAccount", "securityContext",
    "hostNetwork", "hostPID", "hostIPC",
)  # fmt: skip


def labels(job: Job, component: str) -> dict[str, str]:
    """Labels of a child; network policies and the chart's selectors go by them."""
    return {
        "app.kubernetes.io/part-of": "crescendo",
        "app.kubernetes.io/managed-by": "crescendo-operator",
        **selector(job, component),
    }


def selector(job: Job, component: str) -> dict[str, str]:
    """Those of a component's labels that name it and its job, and nothing that may change."""
    return {JOB_LABEL: job.name, COMPONENT_LABEL: component}


def metadata(job: Job, name: str, component: str) -> Manifest:
    """Metadata of a child that goes with the job."""
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": labels(job, component),
        "ownerReferences": [job.owner()],
    }


def restricted_pod() -> Manifest:
    """A pod's security context."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def restricted_container() -> Manifest:
    """A container's security context."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def resources_of(job: Job, component: str, devices: int = 0) -> Manifest:
    """Requests equal to limits, so that a pod is never evicted for another's memory."""
    wanted = (job.spec.get("resources") or {}).get(component) or {}
    amounts: dict[str, str] = {"cpu": wanted.get("cpu", "2"), "memory": wanted.get("memory", "8Gi")}
    if devices:
        amounts[job.placement.get("deviceResource", "nvidia.com/gpu")] = str(devices)
    return {"requests": amounts, "limits": dict(amounts)}


def run_pod(
    job: Job,
    component: str,
    *,
    image: str,
    devices: int,
    identity_secret: str,
    steps: tuple[Sequence[Manifest], Sequence[Manifest]] = ((), ()),
    anywhere: bool = False,
) -> Manifest:
    """The pod template of head or worker.

    devices: GPUs; 0 hides every GPU of the node; steps: init containers, and the volumes that they need besides;
    anywhere: it mounts no volume of the run, and may run where it likes.
    """
    spec = job.spec
    resources = spec.get("resources") or {}
    sized_as = component if component == "head" or resources.get(component) else "worker"
    shared = (resources.get(sized_as) or {}).get("sharedMemory", "2Gi")
    pod: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "serviceAccountName": account_name(job),
        "securityContext": restricted_pod(),
        "containers": [
            {
                "name": f"ray-{component}",
                "image": image,
                "imagePullPolicy": spec.get("imagePullPolicy", "IfNotPresent"),
                "env": _environment(job, devices),
                "resources": resources_of(job, sized_as, devices),
                "securityContext": restricted_container(),
                "volumeMounts": [
                    {"name": "run", "mountPath": RUN_FOLDER_MOUNT},
                    {"name": "run-file", "mountPath": RUN_FILE_MOUNT, "readOnly": True},
                    {"name": "identity", "mountPath": IDENTITY_MOUNT, "readOnly": True},
                    {"name": "tmp", "mountPath": "/tmp"},
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            _run_volume(job, component),
            {"name": "run-file", "configMap": {"name": f"{job.name}-run"}},
            {"name": "identity", "secret": {"secretName": identity_secret, "defaultMode": 0o440}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}},
        ],
    }
    _mount_buffer_password(pod, job)
    _mount_store_keys(pod, job)
    if spec.get("imagePullSecrets"):
        pod["imagePullSecrets"] = list(spec["imagePullSecrets"])
    if steps[0]:
        pod["initContainers"] = list(steps[0])
        pod["volumes"] += steps[1]
    if not anywhere:
        pod |= _scheduling(job, component, devices)
    template = {"metadata": {"labels": labels(job, component)}, "spec": pod}
    return patched(template, job, component)


def _environment(job: Job, devices: int) -> list[Manifest]:
    environment: list[Manifest] = [
        {"name": "HOME", "value": "/tmp"},
        {"name": "CRESCENDO_IDENTITY", "value": IDENTITY_MOUNT},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    if not devices:
        environment.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"})
    if is_shared(job) or job.checkpoint_store:  # what both hold is found again by it on an emptied volume
        environment.append({"name": RUN_ID_VARIABLE, "value": run_id(job)})
    return environment


def _mount_buffer_password(pod: Manifest, job: Job) -> None:
    """The client's half of the buffer's Secret; the server's configuration is not for the run's pods."""
    secret = {"secretName": f"{job.name}-buffer", "defaultMode": 0o440}
    secret["items"] = [{"key": "password", "path": "password"}]
    pod["volumes"].append({"name": "buffer", "secret": secret})
    mount = {"name": "buffer", "mountPath": BUFFER_PASSWORD_MOUNT, "readOnly": True}
    pod["containers"][0]["volumeMounts"].append(mount)


def _mount_store_keys(pod: Manifest, job: Job) -> None:
    """As files, so that what the run starts does not inherit them."""
    name = (job.checkpoint_store.get("secretRef") or {}).get("name")
    if name:
        pod["volumes"].append({"name": "store-keys", "secret": {"secretName": name, "defaultMode": 0o440}})
        mount = {"name": "store-keys", "mountPath": STORE_KEYS_MOUNT, "readOnly": True}
        pod["containers"][0]["volumeMounts"].append(mount)


def _run_volume(job: Job, component: str) -> Manifest:
    """The run's volume; with a checkpoint store the workers have a folder of their own."""
    if job.checkpoint_store and component != "head":
        return {"name": "run", "emptyDir": {}}
    return {"name": "run", "persistentVolumeClaim": {"claimName": claim_name(job)}}


def claim_name(job: Job) -> str:
    """The run's volume claim: given, or the operator's own."""
    return job.claim_given or f"{job.name}-run"


def account_name(job: Job) -> str:
    """The run's service account, without rights. Not the job's bare name, which may be that of an account of others."""
    return f"{job.name}-run"


def _scheduling(job: Job, component: str, devices: int) -> Manifest:
    """Where a pod may run. A volume that one node mounts keeps all pods of the run together, by the workers' rules."""
    one_node = (job.spec.get("storage") or {}).get("accessMode", "ReadWriteOnce") == "ReadWriteOnce"
    one_node = one_node and not job.checkpoint_store
    if component == "head" and not one_node:
        return {}
    placement = job.placement
    names = ("nodeSelector", "tolerations") + (("runtimeClassName",) if devices else ())
    found: Manifest = {name: placement[name] for name in names if placement.get(name)}
    if one_node:
        found["affinity"] = {"podAffinity": _together(job, component)}
    return found


def _together(job: Job, component: str) -> Manifest:
    """The pods of a run on one node, which the first worker chooses: it needs GPUs, and a head fits beside most.

    A term that a pod meets itself does not hold it back while no other pod meets it: so the first worker is free, the
    head waits for it, and a worker that comes later goes where they are.
    """
    others = [WORKER, ROLLOUT] if component == "head" else ["head", WORKER, ROLLOUT]
    pods = {
        "matchLabels": {JOB_LABEL: job.name},
        "matchExpressions": [{"key": COMPONENT_LABEL, "operator": "In", "values": others}],
    }
    term = {"labelSelector": pods, "topologyKey": "kubernetes.io/hostname"}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def patched(template: Manifest, job: Job, component: str) -> Manifest:
    """The template with spec.podPatches of its component merged in."""
    for patch in job.spec.get("podPatches", ()):
        if patch["component"] == component:
            template = merge(template, patch["template"])
    return template


def merge(base: Any, patch: Any) -> Any:
    """Mappings merge by key, lists of named things by name; anything else is replaced."""
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        merged = dict(base)
        for key, value in patch.items():
            merged[key] = merge(base[key], value) if key in base else value
        return merged
    if isinstance(base, Sequence) and isinstance(patch, Sequence) and _named(base) and _named(patch):
        by_name = {item["name"]: item for item in base}
        for item in patch:
            by_name[item["name"]] = merge(by_name[item["name"]], item) if item["name"] in by_name else item
        return list(by_name.values())
    return patch


def _named(items: Any) -> bool:
    return not isinstance(items, str) and all(isinstance(item, Mapping) and "name" in item for item in items)


def forbidden_patches(job: Job) -> list[str]:
    """Problems of spec.podPatches: what would change identity or security of a pod."""
    problems = []
    for index, patch in enumerate(job.spec.get("podPatches", ())):
        for path in _protected_paths(patch.get("template", {}), "template"):
            problems.append(
                f"spec.podPatches[{index}].{path} may not be set: identity and security contexts are the operator's"
            )
    return problems


def _protected_paths(value: Any, path: str) -> list[str]:
    if isinstance(value, Mapping):
        # The labels too: network policies and Services go by them.
        own = [f"{path}.{key}" for key in value if key in PROTECTED or key.startswith(f"{GROUP}/")]
        return own + [found for key, child in value.items() for found in _protected_paths(child, f"{path}.{key}")]
    if isinstance(value, list):
        return [found for index, child in enumerate(value) for found in _protected_paths(child, f"{path}[{index}]")]
    return []
