"""Observe, plan, write: one RLJob at a time.

Called by the queue (queue.py) for every event that matters (watch.py) and every resync. observe.py reads, plan.py
decides; here it is written. The status is replaced only at the resource version that was read, so that two operators,
or one that lags, cannot both win. Everything that is written can be written again: names are fixed, applies are whole,
deletions of what is gone are fine.
"""

import base64
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from crescendo.controller.operator.api import Api, ApiFailure
from crescendo.controller.operator.certificates import KeyPair
from crescendo.controller.operator.children import controller_address, fixtures, ray_job
from crescendo.controller.operator.children.identity import buffer_secret
from crescendo.controller.operator.children.storage import buffer_name
from crescendo.controller.operator.events import event_of
from crescendo.controller.operator.identities import Identities
from crescendo.controller.operator.observe import Observer
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.plan import plan, told
from crescendo.controller.operator.progress import Runs
from crescendo.controller.operator.renewal import with_renewal
from crescendo.controller.operator.requests import acknowledged
from crescendo.controller.operator.resource import KIND, Job, Manifest
from crescendo.controller.operator.shared_buffer import SharedBuffer, SharedBufferProblem, is_shared
from crescendo.controller.operator.status import Draft
from crescendo.controller.operator.writes import RESYNC_S, SOON_S, Note, Plan

log = logging.getLogger(__name__)

CONFLICT: Final = 409
REFUSALS: Final = frozenset({400, 403, 404, 422, 500})  # 500: of a server-side apply, a manifest of no valid form


class Reconciler:
    """Carries out plans. authority: signs the jobs' certificates; clock, address_of (observe.py): for tests."""

    def __init__(
        self,
        api: Api,
        runs: Runs,
        options: Options,
        authority: KeyPair,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        address_of: Callable[[Job], str] = controller_address,
    ) -> None:
        self._api = api
        self._runs = runs
        self._options = options
        self._clock = clock
        self._address_of = address_of
        self._shared = SharedBuffer(options)
        self._identities = Identities(api, authority, options, clock)
        self._observer = Observer(api, runs, options, self._identities, clock, address_of)

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
            decided = plan(await self._observer.observe(job))
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
        address, status, events = self._address_of(job), decided.status or dict(job.status), decided.events
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
