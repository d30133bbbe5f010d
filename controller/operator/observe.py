"""What one RLJob's next decision needs, read fresh, and no more than that.

Volumes are looked at before an attempt is created, pods when they are late, certificates every CERTIFICATES_EVERY.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from crescendo.common.errors import EnvironmentProblem
from crescendo.controller.operator.api import Api, ApiFailure
from crescendo.controller.operator.children import spec_problems
from crescendo.controller.operator.children.inputs import fetch_steps
from crescendo.controller.operator.children.pods import claim_name
from crescendo.controller.operator.children.storage import buffer_name
from crescendo.controller.operator.identities import Identities
from crescendo.controller.operator.obstacles import first_obstacle
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.pairing import carried
from crescendo.controller.operator.progress import Runs
from crescendo.controller.operator.resource import (
    ADOPT_ANNOTATION,
    JOB_LABEL,
    QUEUED_UID_LABEL,
    Attempt,
    BufferServer,
    Cluster,
    FetchStep,
    Hold,
    Job,
    Manifest,
    Observed,
    Report,
)

KEPT_CHECKS: Final = 5000
# Pods that are not up by then are asked why.
PATIENCE: Final = timedelta(seconds=60)
STEERING: Final = (
    "suspend", "promoteTo", "backoffLimit", "ttlSecondsAfterFinished",
    "activeDeadlineSeconds", "preRunningDeadlineSeconds", "suspendDeadlineSeconds",
)  # fmt: skip


class Observer:
    """Looks at jobs. clock: now; address_of: where a run's controller answers."""

    def __init__(
        self,
        api: Api,
        runs: Runs,
        options: Options,
        identities: Identities,
        clock: Callable[[], datetime],
        address_of: Callable[[Job], str],
    ) -> None:
        self._api = api
        self._runs = runs
        self._options = options
        self._identities = identities
        self._clock = clock
        self._address_of = address_of
        self._checked: dict[bytes, tuple[str, ...]] = {}
        self._silent: dict[str, datetime] = {}  # by attempt, since when

    async def observe(self, job: Job) -> Observed:
        """What the next decision about a job needs. Raises ApiFailure."""
        own = {JOB_LABEL: job.name}
        # A name may be used again: children of an earlier job of that name are not ours.
        bodies = await self._api.find("RayJob", job.namespace, own)
        attempts = tuple(Attempt.from_body(body) for body in bodies if job.owns(body))
        observed = Observed(
            job=job,
            attempts=attempts,
            pods=(0, 0),
            report=None,
            storage_id="",
            buffer_storage_id="",
            now=self._clock(),
            problems=() if job.finished else self._problems(job),
            verbs_reviewed=self._options.verbs_reviewed,
        )
        newest = observed.newest
        if job.finished or newest is None:
            observed = replace(observed, buffer=await self._buffer(job))
        if job.finished:
            return observed
        if newest is None or newest.number < job.attempt:
            storage, buffer, leaving = await self._storage_ids(job)
            if job.attempt == 0:
                leaving = leaving or await self._leaving(job, bodies)
            observed = replace(observed, storage_id=storage, buffer_storage_id=buffer, leaving=leaving)
            observed = replace(observed, uncertified=await self._identities.uncertified(job))
        if newest is None:
            return observed
        if newest.queued:
            observed = replace(observed, hold=await self._hold(newest, job))
        observed = replace(observed, fetch=await self._fetch(newest, job))
        cluster = await self._cluster(newest, job)
        observed = replace(observed, obstacle=await self._obstacle(newest, job, cluster))
        report, unasked = await self._report(newest, job)
        observed = replace(observed, report=report, unasked=unasked, silent_since=self._silence(newest, report))
        return replace(observed, pods=(cluster.ready, cluster.wanted), replicas=cluster.replicas)

    def _problems(self, job: Job) -> tuple[str, ...]:
        """Checked once for what a run is made of, since it takes half a second; not again for what steers it."""
        made_of = {name: value for name, value in job.spec.items() if name not in STEERING}
        adopted = job.annotations.get(ADOPT_ANNOTATION, "")
        key = hashlib.sha256(json.dumps([job.namespace, adopted, made_of], sort_keys=True).encode()).digest()
        if key not in self._checked:
            if len(self._checked) >= KEPT_CHECKS:
                self._checked.clear()
            self._checked[key] = spec_problems(job, self._options)
        return self._checked[key]

    async def _storage_ids(self, job: Job) -> tuple[str, str, str]:
        """What volume and buffer carry, and which of them goes with an earlier job of this name."""
        found, leaving = [], ""
        for name in (claim_name(job), f"data-{job.name}-buffer-0"):
            storage, goes = carried(await self._api.get("PersistentVolumeClaim", name, job.namespace), job)
            leaving = name if goes else leaving
            found.append(storage)
        return found[0], found[1], leaving

    async def _leaving(self, job: Job, ray_jobs: Sequence[Manifest]) -> str:
        """What an earlier job of this name leaves that must not become this one's.

        Its RayJob would be this one's attempt under the same name, its buffer's server would go on with a password that
        goes with its Secret. What else it leaves is written over.
        """
        for body in ray_jobs:
            if job.succeeds(body):
                return f"RayJob {body['metadata']['name']}"
        for kind in ("StatefulSet", "Secret"):
            found = await self._api.get(kind, buffer_name(job), job.namespace)
            if found is not None and job.succeeds(found):
                return f"{kind} {buffer_name(job)}"
        return ""

    async def _buffer(self, job: Job) -> BufferServer | None:
        body = await self._api.get("StatefulSet", buffer_name(job), job.namespace)
        # One of an earlier job of this name goes with that job.
        return BufferServer.from_body(body) if body is not None and job.owns(body) else None

    async def _cluster(self, attempt: Attempt, job: Job) -> Cluster:
        if not attempt.cluster_name:
            return Cluster(0, 0, {})
        return Cluster.from_body(await self._api.get("RayCluster", attempt.cluster_name, job.namespace) or {})

    async def _fetch(self, attempt: Attempt, job: Job) -> FetchStep | None:
        """Looked at before the run runs only, and only in jobs that fetch."""
        if job.is_true("Running") or not attempt.cluster_name or not fetch_steps(job)[0]:
            return None
        labels = {"ray.io/cluster": attempt.cluster_name, "ray.io/node-type": "head"}
        steps = [FetchStep.from_pod(pod) for pod in await self._api.find("Pod", job.namespace, labels)]
        return next(filter(None, steps), None)

    async def _obstacle(self, attempt: Attempt, job: Job, cluster: Cluster) -> str:
        """What keeps the pods of an attempt that should be up by now."""
        begun = job.time("attemptTime")
        late = begun is not None and self._clock() - begun >= PATIENCE
        if not late or job.is_true("Running") or attempt.queued or cluster.ready >= cluster.wanted:
            return ""
        return first_obstacle(await self._api.find("Pod", job.namespace, {"ray.io/cluster": attempt.cluster_name}))

    async def _hold(self, attempt: Attempt, job: Job) -> Hold:
        """What Kueue says of an attempt that it holds back; it may be neither installed nor open to us."""
        try:
            found = await self._api.find("Workload", job.namespace, {QUEUED_UID_LABEL: attempt.uid})
        except ApiFailure as failure:
            if failure.code not in (403, 404):
                raise
            found = []
        return Hold.from_workload(found[0] if found else None, job)

    async def _report(self, attempt: Attempt, job: Job) -> tuple[Report | None, str]:
        """What the run says, and why it cannot even be asked."""
        if attempt.job_status != "RUNNING":
            return None, ""
        try:
            return await self._runs.report(self._address_of(job)), ""
        except EnvironmentProblem as problem:
            why = f"the operator has no certificate to ask the run with: {problem.message.rstrip('.')}"
            return None, f"{why}; the operator's log says why it is not issued"

    def _silence(self, attempt: Attempt, report: Report | None) -> datetime | None:
        """Since when a run in its pods has not answered: as long as this operator has asked it."""
        if report is None and attempt.job_status == "RUNNING":
            return self._silent.setdefault(attempt.uid, self._clock())
        self._silent.pop(attempt.uid, None)
        return None
