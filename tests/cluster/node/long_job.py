"""An RLJob that lives through it all: inputs that are fetched, verbs, a suspension, the loss of its head.

Model and training data come from a claim, validation data from a bucket. Its first stage does not end by itself, and
nothing is committed unless somebody asks.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

from crescendo.common.config import load_config
from crescendo.common.models.scratch import write_scratch_model
from tests.cluster.kube.images import ROOT, VOLUME_MOUNT
from tests.cluster.node.short_job import USER, short_job, volume

Manifest = dict[str, Any]
CLAIM: Final = "inputs"
BUCKET: Final = "sums"
NEVER: Final = 100_000
LAST_ITERATIONS: Final = 2
NUM_PROMPTS: Final = 32
_ROOM: Final = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}


def long_job(name: str, namespace: str, folder: Path, *, store_port: int, secret: str) -> Manifest:
    """The RLJob. folder: for the run file, while it is made; secret: opens the bucket."""
    job = short_job(name, namespace, folder)
    spec, run = job["spec"], job["spec"]["run"]
    rl = ends_when_promoted(run)
    rl["checkpoints"]["everyIterations"] = NEVER
    rl["curriculum"]["order"] = "uniform"  # nobody says how hard a row is
    for data in ("train", "validation"):
        run["data"][data] |= {"name": "jsonl", "path": "", "options": {}, "numPrompts": 0}
    spec |= {
        "backoffLimit": 3,
        "model": {"uri": f"pvc://{CLAIM}/model"},
        "datasets": {
            "train": {"uri": f"pvc://{CLAIM}/rows/*.jsonl"},
            "validation": {"uri": f"s3://{BUCKET}/held-out", "secretRef": {"name": secret}},
        },
        "network": {"egressPorts": [store_port]},
    }
    steps = [_fetch_patch(name) for name in ("model", "train", "validation")]
    (head,) = (patch["template"]["spec"] for patch in spec["podPatches"] if patch["component"] == "head")
    head["initContainers"] = steps
    return job


def ends_when_promoted(run: Manifest) -> Manifest:
    """Makes the run begin with reinforcement and stay in its first stage; returns that step."""
    del run["steps"][0]  # the warm-up
    rl: Manifest = run["steps"][0]["rl"]
    rl["validation"]["everyIterations"] = NEVER
    for stage, iterations in zip(rl["stages"], (NEVER, LAST_ITERATIONS), strict=True):
        stage["maxIterations"] = stage["gate"]["iterations"] = iterations
    return rl


def fill_claim(namespace: str, folder: Path) -> list[Manifest]:
    """Writes a model and training rows into a folder; its volume and claim."""
    model = load_config(ROOT / "recipes/quickstart/recipe.yaml").model.scratch
    write_scratch_model(folder / CLAIM / "model", model, seed=0)
    (folder / CLAIM / "rows").mkdir()
    (folder / CLAIM / "rows" / "sums.jsonl").write_bytes(rows(first=0))
    for path in (folder / CLAIM).rglob("*"):
        os.chown(path, USER, USER)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "volumeName": f"{namespace}-{CLAIM}",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    return [volume(CLAIM, namespace, folder / CLAIM), claim]


def rows(first: int) -> bytes:
    """JSON lines of the quick start's task: a start and three steps around a ten-hour clock."""
    found = []
    for number in range(first, first + NUM_PROMPTS):
        start, steps = number % 10, (number // 10 % 3 + 1, number // 30 % 3 + 1, 1)
        question = str(start) + "".join(f"{label}{step}" for label, step in zip("abc", steps, strict=True)) + "?"
        found.append(json.dumps({"question": question, "answer": str((start + sum(steps)) % 10)}))
    return "\n".join(found).encode()


def bucket_secret(name: str, namespace: str, endpoint: str, key: str) -> Manifest:
    """The Secret that opens a bucket."""
    data = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "unchecked"}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}


def _fetch_patch(name: str) -> Manifest:
    mount = {"name": "packages", "mountPath": VOLUME_MOUNT, "readOnly": True}
    return {"name": f"fetch-{name}", "resources": _ROOM, "volumeMounts": [mount]}
