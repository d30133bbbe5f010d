"""Model and data sets that an RLJob names by URI: where the run finds them, and the steps of the head that fetch them.

    file://            used where it lies: in the image, or on a volume that a pod patch mounts
    pvc:// s3:// hf:// fetched by an init container of the head into the cache on the run's volume, which all pods
                       mount; a claim is mounted in that container alone, read-only

A Secret is the environment of its own step alone: neither the run nor what it starts sees it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from crescendo.common.errors import ConfigError
from crescendo.controller.fetch.uri import Kind, Source, parse
from crescendo.controller.operator.children.pods import RUN_FOLDER_MOUNT, resources_of, restricted_container
from crescendo.controller.operator.plan import DEFAULT_PRE_RUNNING_S
from crescendo.controller.operator.resource import FETCH_STEP, Job, Manifest

CACHE: Final = f"{RUN_FOLDER_MOUNT}/cache"
CLAIMS_MOUNT: Final = "/mnt/claims"
READABLE: Final = ("jsonl", "parquet")
_ANY_FILE: Final = "files/**"


@dataclass(frozen=True)
class Input:
    """One of spec.model, spec.datasets.train and spec.datasets.validation. run_path: what it replaces in spec.run."""

    name: str
    field: str
    kind: Kind
    run_path: str
    spec: Mapping[str, Any]

    @property
    def source(self) -> Source:
        """Where it lies; raises ConfigError."""
        return parse(str(self.spec["uri"]), self.kind, field=f"{self.field}.uri")

    @property
    def target(self) -> str:
        """Where it is fetched to: by its URI, because jobs that share a claim may differ in it."""
        return f"{CACHE}/{self.name}-{hashlib.sha256(self.source.uri.encode()).hexdigest()[:12]}"

    @property
    def value(self) -> str:
        """What stands in the run file."""
        source = self.source
        if source.scheme == "file":
            return source.path
        return f"{self.target}/files" if self.kind is Kind.MODEL else f"{self.target}/{_ANY_FILE}"


def inputs(job: Job) -> list[Input]:
    """Those that the job names."""
    datasets = job.spec.get("datasets") or {}
    known = [("model", "spec.model", Kind.MODEL, "model.source", job.spec.get("model"))]
    for name in ("train", "validation"):
        known.append((name, f"spec.datasets.{name}", Kind.DATASET, f"data.{name}.path", datasets.get(name)))
    return [Input(name, field, kind, path, spec) for name, field, kind, path, spec in known if spec]


def input_problems(job: Job) -> list[str]:
    """What is wrong with them, as `crescendo fetch` would say it."""
    problems = []
    for one in inputs(job):
        try:
            source = one.source
        except ConfigError as error:
            problems.append(str(error))
            continue
        if source.scheme == "file" and one.spec.get("secretRef"):
            problems.append(f"{one.field}.secretRef is set, but {one.spec['uri']} is not fetched: remove it")
        reader = ((job.spec["run"].get("data") or {}).get(one.name) or {}).get("name", "task")
        if one.kind is Kind.DATASET and reader not in READABLE:
            problems.append(
                f"{one.field} is set, but spec.run.data.{one.name}.name is {reader!r}; "
                f"a fetched data set is read as one of {', '.join(READABLE)}: set it"
            )
    return problems


def fetch_steps(job: Job) -> tuple[list[Manifest], list[Manifest]]:
    """Init containers of the head, and the volumes that they alone mount."""
    steps, volumes = [], []
    for one in inputs(job):
        source = one.source
        if source.scheme == "file":
            continue
        claim = {"name": f"claim-{one.name}", "mountPath": f"{CLAIMS_MOUNT}/{source.owner}", "readOnly": True}
        steps.append(_step(job, one, source, [claim] if source.scheme == "pvc" else []))
        if source.scheme == "pvc":
            mounted = {"claimName": source.owner, "readOnly": True}
            volumes.append({"name": claim["name"], "persistentVolumeClaim": mounted})
    return steps, volumes


def _step(job: Job, one: Input, source: Source, mounts: list[Manifest]) -> Manifest:
    # The claim's name stays in the URI, so that a cache of another claim does not pass for this one.
    uri = source.uri if source.scheme != "pvc" else f"file://{CLAIMS_MOUNT}/{source.owner}/{source.path}".rstrip("/")
    deadline_s = job.spec.get("preRunningDeadlineSeconds", DEFAULT_PRE_RUNNING_S)
    step: Manifest = {
        "name": f"{FETCH_STEP}{one.name}",
        "image": job.spec["image"],
        "imagePullPolicy": job.spec.get("imagePullPolicy", "IfNotPresent"),
        "command": ["crescendo", "fetch", uri, one.target, "--kind", one.kind.value],
        "args": ["--field", one.field, "--deadline", str(deadline_s)],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": resources_of(job, "head"),
        "securityContext": restricted_container(),
        "volumeMounts": [
            {"name": "run", "mountPath": RUN_FOLDER_MOUNT}, {"name": "tmp", "mountPath": "/tmp"}, *mounts,
        ],
    }  # fmt: skip
    secret = (one.spec.get("secretRef") or {}).get("name")
    if secret:
        step["envFrom"] = [{"secretRef": {"name": secret}}]
    return step
