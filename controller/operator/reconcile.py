"""Observe, plan, write: one RLJob at a time.

Called by the queue (queue.py) for every event that matters (watch.py) and every resync. Reads are fresh, and only of
what the next decision needs: volumes before an attempt is created, certificates every CERTIFICATES_EVERY. The status is
replaced only at the resource version that was read, so that two operators, or one that lags, cannot both win.
Everything that is written can be written again: names are fixed, applies are whole, deletions of what is gone are fine.
"""

import base64
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from crescendo.common.errors import EnvironmentProblem
from crescendo.controller.operator.api import Api, ApiFailure
from crescendo.controller.operator.certificates import KeyPair
from crescendo.controller.operator.children import (
    controller_address,
    fixtures,
    ray_job,
    spec_problems,
)
from crescendo.controller.operator.children.identity import buffer_secret
from crescendo.controller.operator.children.inputs import fetch_steps
from crescendo.controller.operator.children.pods import claim_name
from crescendo.controller.operator.children.storage import buffer_name
from crescendo.controller.operator.events import event_of
from crescendo.controller.operator.identities import Identities
from crescendo.controller.operator.obstacles import first_obstacle
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.pairing import carried
from crescendo.controller.operator.plan import plan, told
from crescendo.controller.operator.progress import Runs
from crescendo.controller.operator.renewal import with_renewal
from crescendo.controller.operator.requests import acknowledged
from crescendo.controller.operator.resource import (
    ADOPT_ANNOTATION,
    JOB_LABEL,
    KIND,
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
from crescendo.controller.operator.shared_buffer import SharedBuffer, SharedBufferProblem, is_shared
from crescendo.controller.operator.status import Draft
from crescendo.controller.operator.writes import RESYNC_S, SOON_S, Note, Plan

log = logging.getLogger(__name__)

CONFLICT: Final = 409
REFUSALS: Final = frozenset({400, 403, 404, 422, 500})  # 500: of a server-side apply, a manifest of no valid form
KEPT_CHECKS: Final = 5000
# Pods that are not up by then are asked why.
PATIENCE: Final = timedelta(seconds=60)
STEERING: Final = (
    "suspend", "promoteTo", "backoffLimit", "ttlSecondsAfterFinished",
    "activeDeadlineSeconds", "preRunningDeadlineSeconds", "suspendDeadlineSeconds",
)  # fmt: skip


class Reconciler:
    """Carries out plans. authority: signs the jobs' certificates; clock: now, for tests."""

    def __init__(
        self,
        api: Api,
        runs: Runs,
        options: Options,
        authority: KeyPair,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._runs = runs
        self._options = options
        self._clock = clock
        self._shared = SharedBuffer(options)
        self._identities = Identities(api, authority, options, clock)
        self._checked: dict[bytes, tuple[str, ...]] = {}

    async def reconcile(self, namespace: str, name: str) -> float:
        """One round; returns seconds until the next one is due. Raises ApiFailure."""
        body = await self._api.get(KIND, name, namespace)
        if body is None:
            self._identities.forget(namespace, name)
            return 0.0
        job = Job.from_body(body)
        if job.deleting or not job.is_ours:
            return RESYNC_S
        version = body["metadata"]["resourceVersion"]
        try:
            decided = plan(await self._observe(job))
            await self._carry_out(job, decided, version)
        except ApiFailure as failure:
            if failure.code in REFUSALS:
                await self._tell(job, "Refused", failure.message, version)
            if failure.code != CONFLICT:
                raise
            log.info("%s/%s changed while it was reconciled; once more", namespace, name)
            return 1.0
        except SharedBufferProblem as problem:
            await self._tell(job, "SharedBufferUnavailable", problem.message, version)
            raise
        turned = decided.status is not None and decided.status.get("phase") != job.status.get("phase")
        return min(decided.again_s, SOON_S) if turned else decided.again_s

    # Observe ----------------------------------------------------------------------------------------------

    async def _observe(self, job: Job) -> Observed:
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
        pods, replicas = (cluster.ready, cluster.wanted), cluster.replicas
        return replace(observed, pods=pods, replicas=replicas, report=report, unasked=unasked)

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
            return await self._runs.report(controller_address(job)), ""
        except EnvironmentProblem as problem:
            why = f"the operator has no certificate to ask the run with: {problem.message.rstrip('.')}"
            return None, f"{why}; the operator's log says why it is not issued"

    # Write ------------------------------------------------------------------------------------------------

    async def _carry_out(self, job: Job, decided: Plan, version: str) -> None:
        if decided.create:
            await self._write_fixtures(job)
            await self._api.apply(ray_job(job, decided.create, self._options))
        elif decided.buffer:
            await self._write_fixtures(job)
        elif decided.certify and self._identities.due(job):
            await self._identities.write(job)
        elif decided.renew and self._identities.due(job):
            decided = with_renewal(job, decided, await self._identities.renew(job), self._clock())
        decided = await self._call(job, decided)
        # Before the status: a decision is taken once, and an operator that dies in between is to tell it all the same.
        for note in decided.events:
            log.info("%s/%s: %s: %s", job.namespace, job.name, note.reason, note.message)
            await self._announce(job, note)
        if decided.status is not None:
            await self._api.put_status(job.name, job.namespace, version, decided.status)
        if decided.scale:
            await self._scale(job, decided.scale)
        for name in decided.delete:
            await self._api.delete("RayJob", name, job.namespace)
        if decided.buffer == 0:
            operations: list[Manifest] = [{"op": "replace", "path": "/spec/replicas", "value": 0}]
            await self._api.patch("StatefulSet", buffer_name(job), job.namespace, operations)
        if decided.delete_job:
            await self._api.delete(KIND, job.name, job.namespace)

    async def _announce(self, job: Job, note: Note) -> None:
        """An event is for people: one that is refused, by a quota say, holds up nothing."""
        try:
            await self._api.create(event_of(job, note, self._clock()))
        except ApiFailure as failure:
            if failure.code not in REFUSALS:
                raise
            log.warning("%s/%s: event %s: %s", job.namespace, job.name, note.reason, failure)

    async def _tell(self, job: Job, reason: str, message: str, version: str) -> None:
        """Why a job does not start, where a write of its start is refused: its plan's status is not written then."""
        if job.finished or job.is_true("Running"):
            return
        draft = Draft(job, self._clock())
        draft.phase(job.status.get("phase", "Pending"), reason, message)
        status = draft.finish()
        if status != job.status:
            await self._announce(job, Note("Warning", reason, message))
            await self._api.put_status(job.name, job.namespace, version, status)

    async def _call(self, job: Job, decided: Plan) -> Plan:
        """Calls the run; the plan with what it answered in status and events."""
        address, status, events = controller_address(job), decided.status or dict(job.status), decided.events
        for call in decided.calls:
            if await self._runs.call(address, call) and call.verb == "promote":
                status = {**status, "promotedTo": call.stage}
        if decided.ask is not None and (answer := await self._runs.ask(address, decided.ask)) is not None:
            status = {**status, "request": acknowledged(decided.ask, answer, self._clock())}
            events = (*events, told(decided.ask, answer))
        return replace(decided, status=status if status != job.status else None, events=events)

    async def _write_fixtures(self, job: Job) -> None:
        await self._identities.write(job)
        await self._api.create(buffer_secret(job))
        secret = await self._api.get("Secret", buffer_name(job), job.namespace) or {}
        if is_shared(job):
            password = base64.b64decode((secret.get("data") or {}).get("password", "")).decode()
            await self._shared.admit(job, password)
        for manifest in fixtures(job, self._options, str((secret.get("metadata") or {}).get("uid", ""))):
            await self._api.apply(manifest)

    async def _scale(self, job: Job, sizes: tuple[tuple[str, int], ...]) -> None:
        """Gives worker groups as many pods as a stage needs."""
        name = (job.status.get("cluster") or {}).get("rayCluster", "")
        cluster = await self._api.get("RayCluster", name, job.namespace) if name else None
        if cluster is None:
            return
        names = [group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]]
        operations: list[Manifest] = []
        for group, pods in sizes:
            path = f"/spec/workerGroupSpecs/{names.index(group)}"
            operations.append({"op": "test", "path": f"{path}/groupName", "value": group})
            for key in ("minReplicas", "maxReplicas", "replicas"):
                operations.append({"op": "replace", "path": f"{path}/{key}", "value": pods})
        await self._api.patch("RayCluster", name, job.namespace, operations)
