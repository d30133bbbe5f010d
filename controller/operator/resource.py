"""The RLJob as the operator reads it, and what it has observed of its children.

Views over the API server's JSON: only the fields that a decision needs, typed, each with the CRD's default. Nothing
here talks to anybody.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from crescendo.controller.operator.crd import GROUP, VERSION

API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "RLJob"
MANAGER: Final = f"{GROUP}/operator"
ATTEMPT_LABEL: Final = f"{GROUP}/attempt"
JOB_LABEL: Final = f"{GROUP}/job"
ADOPT_ANNOTATION: Final = f"{GROUP}/adopt-storage"
COMPONENT_LABEL: Final = f"{GROUP}/component"
FETCH_STEP: Final = "fetch-"
EXPIRING: Final = "CertificateExpiring"  # a condition, and the reason of a running job that it holds for
# Kueue's: of a RayJob, and of the Workload that it makes for one.
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL: Final = "kueue.x-k8s.io/priority-class"
QUEUE_ANNOTATION: Final = f"{GROUP}/queue"  # what a RayJob was made for: Kueue may put labels of its own on it
QUEUED_UID_LABEL: Final = "kueue.x-k8s.io/job-uid"
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One RLJob. `spec` and `status` are the API server's, defaults filled in."""

    name: str
    namespace: str
    uid: str
    generation: int
    created: datetime
    deleting: bool
    spec: Mapping[str, Any]
    status: Mapping[str, Any]
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> "Job":
        """From the object as the API server sends it."""
        metadata = body["metadata"]
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=metadata.get("generation", 1),
            created=parse_time(metadata["creationTimestamp"]),
            deleting="deletionTimestamp" in metadata,
            spec=body.get("spec", {}),
            status=body.get("status", {}),
            annotations=metadata.get("annotations") or {},
        )

    @property
    def storage_id(self) -> str:
        """What its volumes must carry: its own uid, or that of an earlier job whose volumes it is told to adopt."""
        return self.annotations.get(ADOPT_ANNOTATION, self.uid)

    @property
    def is_ours(self) -> bool:
        """Whether this operator reconciles it, and not another cluster's."""
        return bool(self.spec.get("managedBy", MANAGER) == MANAGER)

    @property
    def suspend(self) -> bool:
        """Whether somebody wants it to stand still."""
        return bool(self.spec.get("suspend", False))

    @property
    def attempt(self) -> int:
        """Number of the newest attempt that the status knows; 0: none yet."""
        return int(self.status.get("attempt", 0))

    def attempt_name(self, number: int) -> str:
        """Name of an attempt's RayJob."""
        return f"{self.name}-{number}"

    @property
    def placement(self) -> Mapping[str, Any]:
        """spec.placement."""
        return self.spec.get("placement") or {}

    @property
    def claim_given(self) -> str:
        """spec.storage.claimName; empty when the run's volume claim is the operator's own."""
        return str((self.spec.get("storage") or {}).get("claimName") or "")

    @property
    def checkpoint_store(self) -> Mapping[str, Any]:
        """spec.storage.checkpoints; empty when checkpoints lie on the run's volume."""
        return (self.spec.get("storage") or {}).get("checkpoints") or {}

    @property
    def devices_per_node(self) -> int:
        """GPUs of one worker pod; 0 on cores."""
        return int(self.placement.get("devicesPerNode", 0))

    @property
    def devices(self) -> int:
        """GPUs of all worker pods at full size."""
        nodes = int(self.placement.get("nodes", 1)) + int(self.placement.get("rolloutNodes", 0))
        return self.gpus(nodes)

    def gpus(self, pods: int) -> int:
        """GPUs of so many worker pods."""
        return pods * self.devices_per_node

    @property
    def queue_labels(self) -> Mapping[str, str]:
        """What names queue and priority to Kueue; empty without a queue."""
        queue = self.spec.get("queue") or {}
        found = {QUEUE_LABEL: queue.get("name", ""), PRIORITY_LABEL: queue.get("priorityClass", "")}
        return {label: value for label, value in found.items() if value}

    @property
    def queue(self) -> str:
        """Queue and priority in one line; empty without a queue."""
        return " ".join(self.queue_labels.values())

    def time(self, name: str) -> datetime | None:
        """A time of the status."""
        value = self.status.get(name)
        return parse_time(value) if value else None

    def condition(self, kind: str) -> Mapping[str, Any] | None:
        """A condition of the status by its type."""
        return next((found for found in self.status.get("conditions", ()) if found["type"] == kind), None)

    def is_true(self, kind: str) -> bool:
        """Whether a condition holds."""
        found = self.condition(kind)
        return found is not None and found["status"] == "True"

    @property
    def finished(self) -> bool:
        """Whether it has ended for good."""
        return self.is_true("Complete") or self.is_true("Failed")

    def owner(self) -> Manifest:
        """The owner reference of a child that is to go with the job."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def owns(self, child: Manifest) -> bool:
        """Whether a child is this job's, and not an earlier one's of its name."""
        return any(owner["uid"] == self.uid for owner in child["metadata"].get("ownerReferences", ()))

    def succeeds(self, child: Manifest) -> bool:
        """Whether a child is an earlier job's of this name, and goes with it."""
        owners = child["metadata"].get("ownerReferences", ())
        return not self.owns(child) and any(owner["kind"] == KIND for owner in owners)


@dataclass(frozen=True)
class Attempt:
    """A child RayJob. deployment_status and job_status are KubeRay's two axes; queue: what it was made for."""

    number: int
    name: str
    uid: str
    deleting: bool
    suspended: bool
    deployment_status: str
    job_status: str
    reason: str
    message: str
    cluster_name: str
    queue: str = ""

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> "Attempt":
        """From a RayJob as the API server sends it."""
        metadata, status = body["metadata"], body.get("status") or {}
        return cls(
            number=int(metadata.get("labels", {}).get(ATTEMPT_LABEL, "0")),
            name=metadata["name"],
            uid=metadata["uid"],
            deleting="deletionTimestamp" in metadata,
            suspended=bool(body.get("spec", {}).get("suspend", False)),
            deployment_status=status.get("jobDeploymentStatus", ""),
            job_status=status.get("jobStatus", ""),
            reason=status.get("reason", ""),
            message=status.get("message", ""),
            cluster_name=status.get("rayClusterName", ""),
            queue=(metadata.get("annotations") or {}).get(QUEUE_ANNOTATION, ""),
        )

    @property
    def succeeded(self) -> bool:
        """Whether the run ended well."""
        return self.job_status == "SUCCEEDED"

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise."""
        return self.deployment_status == "Failed" or self.job_status in ("FAILED", "STOPPED")

    @property
    def step(self) -> str:
        """What its start waits for: a reason of ours, since KubeRay's words for it are KubeRay's."""
        return {"": "RayJobPending", "Running": "ControllerStarting"}.get(self.deployment_status, "PodsStarting")

    @property
    def queued(self) -> bool:
        """Whether Kueue holds it back."""
        return self.suspended or self.deployment_status in ("Suspended", "Suspending")


@dataclass(frozen=True)
class Cluster:
    """A child RayCluster. ready, wanted: pods; replicas: pods that each worker group is to have."""

    ready: int
    wanted: int
    replicas: Mapping[str, int]

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> "Cluster":
        """From a RayCluster as the API server sends it."""
        status, spec = body.get("status") or {}, body.get("spec") or {}
        head = any(
            condition.get("type") == "HeadPodReady" and condition.get("status") == "True"
            for condition in status.get("conditions", ())
        )
        return cls(
            ready=int(status.get("readyWorkerReplicas", 0)) + int(head),
            wanted=int(status.get("desiredWorkerReplicas", 0)) + 1,
            replicas={group["groupName"]: int(group.get("replicas", 0)) for group in spec.get("workerGroupSpecs", ())},
        )


@dataclass(frozen=True)
class Report:
    """What the run's controller said last, cut to size: its answers are not trusted (see progress.py)."""

    phase: str
    iteration: int
    total_iterations: int
    stage: str
    weight_version: int
    committed_iteration: int
    lease_holder: str
    eta_s: float
    stopped: bool
    failure: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    stage_devices: int = 0
    stage_rollout_devices: int = 0


@dataclass(frozen=True)
class BufferServer:
    """The job's own buffer server: how many pods its StatefulSet wants, and whether they answer."""

    replicas: int
    ready: bool

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> "BufferServer":
        """From a StatefulSet as the API server sends it."""
        wanted = int(body.get("spec", {}).get("replicas", 1))
        ready = int((body.get("status") or {}).get("readyReplicas", 0))
        return cls(wanted, ready >= wanted > 0)


@dataclass(frozen=True)
class Hold:
    """Why Kueue holds an attempt back, in words for people. reason: as a condition carries it."""

    reason: str = "WaitingForQuota"
    message: str = ""

    @classmethod
    def from_workload(cls, body: Mapping[str, Any] | None, job: Job) -> "Hold":
        """From the Workload that Kueue makes for a RayJob; None: there is none."""
        queue = job.spec.get("queue") or {}
        if body is None:
            wanted = ["does it run", "does it manage RayJobs of this namespace"]
            if queue.get("priorityClass"):
                wanted.append(f"is there a WorkloadPriorityClass {queue['priorityClass']} (spec.queue.priorityClass)")
            return cls(message=f"Kueue has not taken it up: {', '.join(wanted)}?")
        conditions = {one["type"]: one for one in (body.get("status") or {}).get("conditions", ())}
        quota, evicted = conditions.get("QuotaReserved") or {}, conditions.get("Evicted") or {}
        leaves = quota.get("status") == "True" and evicted.get("status") == "True"
        message = str((evicted if leaves else quota).get("message", "")) or "Kueue has not decided yet"
        if quota.get("reason") != "Inadmissible":
            return cls(message=message)
        fix = f"name an active LocalQueue of namespace {job.namespace}: `kubectl get localqueue -n {job.namespace}`"
        return cls("Inadmissible", f"spec.queue.name is {queue.get('name', '')!r}: {message}; {fix}")


@dataclass(frozen=True)
class FetchStep:
    """The step of the head's pod that fetches an input now, or failed at it. exit_code: of its newest try, 0: none."""

    name: str
    exit_code: int
    message: str

    @classmethod
    def from_pod(cls, body: Mapping[str, Any]) -> "FetchStep | None":
        """From a pod as the API server sends it; None when none of its steps is under way."""
        for status in (body.get("status") or {}).get("initContainerStatuses", ()):
            state = status.get("state") or {}
            ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated") or {}
            if not status["name"].startswith(FETCH_STEP) or (state.get("terminated") and not ended.get("exitCode")):
                continue
            if "running" in state or ended:
                # The log's end, made by a tenant's pod: the error, if it says one, in printable characters.
                said = str(ended.get("message", "")).rpartition("error: ")[2]
                message = printable(said).replace("\n", " ").strip()[:1000]
                return cls(status["name"], int(ended.get("exitCode", 0)), message)
        return None


@dataclass(frozen=True)
class Observed:
    """Everything that one reconciliation looks at.

    pods: (ready, wanted) of the newest attempt's cluster; storage_id, buffer_storage_id: what the run's and the
    buffer's volume carry (pairing.py); leaving: the name of what goes with an earlier job; problems: of the spec,
    beyond what the CRD could refuse; uncertified: why cert-manager has not issued its certificates; unasked: why the
    operator cannot even ask the run; silent_since: when a run in its pods first did not answer; hold: why the newest
    attempt is queued, if it is; obstacle: what keeps its pods, when they are late; buffer: its own server, looked at
    only while no attempt uses it; replicas: pods that each worker group of the newest attempt's cluster is to have;
    verbs_reviewed: whether somebody reviews who asks for verbs.
    """

    job: Job
    attempts: tuple[Attempt, ...]
    pods: tuple[int, int]
    report: Report | None
    storage_id: str
    buffer_storage_id: str
    now: datetime
    leaving: str = ""
    problems: tuple[str, ...] = ()
    uncertified: str = ""
    unasked: str = ""
    silent_since: datetime | None = None
    buffer: BufferServer | None = None
    fetch: FetchStep | None = None
    obstacle: str = ""
    hold: Hold = Hold()
    replicas: Mapping[str, int] = field(default_factory=dict)
    verbs_reviewed: bool = True

    @property
    def newest(self) -> Attempt | None:
        """The newest attempt that still exists."""
        return max(self.attempts, key=lambda attempt: attempt.number, default=None)

    @property
    def last_number(self) -> int:
        """The highest attempt number ever used."""
        return max([self.job.attempt, *(attempt.number for attempt in self.attempts)])


def printable(text: str) -> str:
    """What others say, as a terminal may show it: line ends, and no other control characters."""
    return "".join(mark if mark.isprintable() or mark == "\n" else " " for mark in text)


def parse_time(value: str) -> datetime:
    """A time of the API server."""
    return datetime.fromisoformat(value.replace("Z", "+00:00"))


def format_time(value: datetime) -> str:
    """A time as the API server writes it, whole seconds."""
    return value.strftime("%Y-%m-%dT%H:%M:%SZ")
