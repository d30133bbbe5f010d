"""A small Kubernetes with KubeRay for tests of the plan: an RLJob, its RayJobs, a clock, crashes after any write."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from crescendo.controller.operator.plan import plan
from crescendo.controller.operator.resource import Attempt, BufferServer, FetchStep, Hold, Job, Observed, Report
from crescendo.controller.operator.writes import Plan

START = datetime(2026, 1, 1, tzinfo=UTC)
REPORT = Report("rollout", 3, 10, "8k", 4, 2, "rollout", 60.0, False, "", {"reward": 0.5, "length": 100.0})


class Crash(Exception):
    """The operator dies here."""


@dataclass
class World:
    """The API server's state. crash_after: writes until the operator dies; negative: never."""

    spec: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    now: datetime = START
    report: Report | None = None
    pods_up: bool = True
    deleted: bool = False
    crash_after: int = -1
    writes: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    problems: tuple[str, ...] = ()
    leaving: str = ""
    uncertified: str = ""
    unasked: str = ""
    buffer: BufferServer | None = None
    buffer_comes_up: bool = True
    fetch: FetchStep | None = None
    obstacle: str = ""
    hold: Hold = field(default_factory=Hold)
    annotations: dict[str, str] = field(default_factory=dict)
    replicas: dict[str, int] = field(default_factory=dict)

    def observed(self) -> Observed:
        """What an operator that starts now would see."""
        return Observed(
            job=Job("math", "team", "uid-1", 1, START, False, self.spec, self.status, self.annotations),
            attempts=tuple(self.attempts.values()),
            pods=(2, 2) if self.attempts and self.pods_up else (0, 2),
            report=self.report if any(one.job_status == "RUNNING" for one in self.attempts.values()) else None,
            storage_id="",
            buffer_storage_id="",
            now=self.now,
            problems=self.problems,
            leaving=self.leaving,
            uncertified=self.uncertified,
            unasked=self.unasked,
            buffer=self.buffer,
            fetch=self.fetch,
            obstacle=self.obstacle,
            hold=self.hold,
            replicas=self.replicas,
        )

    def reconcile(self) -> Plan:
        """One reconciliation with all its writes; raises Crash."""
        decided = plan(self.observed())
        if decided.create:
            self._write(f"create {decided.create}")
            self._create(decided.create)
            self.buffer = self.buffer or BufferServer(1, True)
        elif decided.buffer:
            self._write("start buffer")
            self.buffer = BufferServer(1, self.buffer_comes_up)
        for call in decided.calls:
            self._write(call.verb)
            self._call(call.verb, call.stage)
        if decided.status is not None:
            self._write("status")
            self.status = decided.status
        for group, pods in decided.scale:
            self._write(f"scale {group} {pods}")
            self.replicas = {**self.replicas, group: pods}
        for name in decided.delete:
            self._write(f"delete {name}")
            self.attempts.pop(name, None)
        if decided.buffer == 0:
            self._write("stop buffer")
            self.buffer = BufferServer(0, False)
        if decided.delete_job:
            self._write("delete job")
            self.deleted = True
        return decided

    def settle(self, rounds: int = 30, seconds: float = 20.0) -> None:
        """Reconciles until the job has ended or the rounds are over; the operator restarts after a crash."""
        for _ in range(rounds):
            try:
                self.reconcile()
            except Crash:
                self.crash_after = -1
            self.now += timedelta(seconds=seconds)

    def kuberay(self, **status: str) -> None:
        """KubeRay changes the newest RayJob's status."""
        name = max(self.attempts, key=lambda one: self.attempts[one].number)
        self.attempts[name] = replace(self.attempts[name], **status)

    def run(self, report: Report = REPORT) -> None:
        """The newest attempt runs and its controller answers."""
        self.kuberay(deployment_status="Running", job_status="RUNNING", cluster_name="ray-1")
        self.report = report

    @property
    def phase(self) -> str:
        """status.phase."""
        return str(self.status.get("phase", ""))

    def condition(self, kind: str) -> str:
        """The status of a condition; empty when there is none."""
        return next((one["status"] for one in self.status.get("conditions", ()) if one["type"] == kind), "")

    def _create(self, number: int) -> None:
        name = f"math-{number}"
        if name not in self.attempts:
            self.created.append(name)
            queue = self.observed().job.queue
            self.attempts[name] = Attempt(number, name, f"uid-{name}", False, False, "", "", "", "", "", queue)

    def _call(self, verb: str, stage: str) -> None:
        if verb == "stop" and self.report is not None:
            self.report = replace(self.report, stopped=True)
        if verb == "promote":
            self.status = {**self.status, "promotedTo": stage}

    def _write(self, what: str) -> None:
        self.writes.append(what)
        if self.crash_after == 0:
            raise Crash
        self.crash_after -= 1
