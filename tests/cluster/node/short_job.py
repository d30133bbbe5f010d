"""A short RLJob for one small node: the quick start cut to a few steps, in real pods with real engines.

Requests are small, so that everything fits two cores; limits are what the programs need. Torch and its kin come from a
read-only volume (kube/images.py). Volumes are folders of the node.
"""

import importlib.metadata
import os
from pathlib import Path
from typing import Any

from crescendo.common.config import load_config, read_mapping, save_resolved
from crescendo.common.errors import ConfigError
from crescendo.controller.operator.render import to_rljob
from tests.cluster.kube.images import ROOT, VOLUME_MOUNT, version

Manifest = dict[str, Any]
USER = 1000
SETTINGS = (
    "placement.device=cpu",
    "data.train.num_prompts=32",
    "data.validation.num_prompts=8",
    "steps.0.sft.steps=8",
    "steps.0.sft.batch_size=4",
    "steps.1.rl.validation.num_prompts=4",
    "steps.1.rl.validation.every_iterations=2",
    "steps.1.rl.checkpoints.every_iterations=1",
    *(f"steps.1.rl.stages.{stage}.{setting}" for stage in range(2) for setting in (
        "prompts_per_iteration=4", "samples_per_prompt=2", "gate.name=step", "gate.iterations=1",
        "gate.min_iterations=0", "max_iterations=1",
    )),
)  # fmt: skip
LIMITS = {"head": ("2", "3Gi"), "worker": ("2", "6Gi"), "rollout": ("2", "6Gi"), "buffer": ("1", "512Mi")}


def short_job(name: str, namespace: str, folder: Path, *, disaggregated: bool = False) -> Manifest:
    """The RLJob. folder: for the run file, while it is made."""
    config = load_config(ROOT / "recipes/quickstart/recipe.yaml", list(SETTINGS))
    del config.steps[1].rl.stages[2:]
    save_resolved(config, folder / f"{name}.yaml")
    image = f"localhost/crescendo/run:{version()}-volume"
    job = to_rljob(read_mapping(folder / f"{name}.yaml"), image=image, name=name, namespace=namespace)
    components = ("head", "worker", "rollout", "buffer") if disaggregated else ("head", "worker", "buffer")
    job["spec"] |= {
        "backoffLimit": 0,
        "podPatches": [{"component": component, "template": _patch(component)} for component in components],
        "resources": {component: {"sharedMemory": "512Mi"} for component in ("head", "worker")},
        "storage": {"size": "1Gi"},
        "buffer": {"size": "1Gi"},
    }
    if disaggregated:
        job["spec"]["placement"] = {"mode": "Disaggregated", "nodes": 1, "rolloutNodes": 1}
        job["spec"]["storage"]["accessMode"] = "ReadWriteMany"
    return job


def takes_disaggregated() -> bool:
    """Whether the config check lets CPU runs be disaggregated."""
    apart = ("placement.name=disaggregated", "trainer.weight_channel=tcp")
    try:
        load_config(ROOT / "recipes/quickstart/recipe.yaml", [*SETTINGS, *apart])
    except ConfigError:
        return False
    return True


def volumes(name: str, namespace: str, folder: Path) -> list[Manifest]:
    """Folders of the node for the claims of a job."""
    return [empty_volume(claim, namespace, folder) for claim in (f"{name}-run", f"data-{name}-buffer-0")]


def empty_volume(claim: str, namespace: str, folder: Path) -> Manifest:
    """A new folder below a folder, for a claim."""
    (folder / claim).mkdir(parents=True)
    os.chown(folder / claim, USER, USER)
    return volume(claim, namespace, folder / claim)


def packages(namespace: str) -> list[Manifest]:
    """The volume `packages` of a namespace: the checkout's own site-packages, and its claim."""
    site = Path(importlib.metadata.distribution("torch").locate_file(""))
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "packages", "namespace": namespace},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": f"{namespace}-packages",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    return [volume("packages", namespace, site, mode="ReadOnlyMany"), claim]


def volume(claim: str, namespace: str, folder: Path, mode: str = "") -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-{claim}"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": [mode] if mode else ["ReadWriteOnce", "ReadWriteMany"],
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {"namespace": namespace, "name": claim},
            "persistentVolumeReclaimPolicy": "Retain",
        },
    }


def _patch(component: str) -> Manifest:
    cpu, memory = LIMITS[component]
    container: Manifest = {
        "name": "valkey" if component == "buffer" else f"ray-{component}",
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": cpu, "memory": memory}},
    }
    if component == "buffer":
        return {"spec": {"containers": [container]}}
    container["volumeMounts"] = [{"name": "packages", "mountPath": VOLUME_MOUNT, "readOnly": True}]
    volume = {"name": "packages", "persistentVolumeClaim": {"claimName": "packages", "readOnly": True}}
    return {"spec": {"containers": [container], "volumes": [volume]}}
