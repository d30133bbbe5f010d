"""The certificates of jobs' pods: written before an attempt, renewed while it runs.

Called by reconcile.py; lives as long as the operator. What it remembers is when a job's certificates are to be looked
at again: every CERTIFICATES_EVERY, and every AGAIN while one is not renewed.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from crescendo.controller.operator.api import Api, ApiFailure
from crescendo.controller.operator.certificates import KeyPair
from crescendo.controller.operator.children.identity import (
    ROLES,
    certificate_request,
    end,
    identity_name,
    identity_secret,
    needs_renewal,
)
from crescendo.controller.operator.issuer import is_as_asked, unissued, unrenewed
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import Job, Manifest, format_time

# A certificate is renewed days before its end; one that somebody deleted comes back this soon.
CERTIFICATES_EVERY: Final = timedelta(minutes=10)
AGAIN: Final = timedelta(minutes=1)


class Identities:
    """Of all jobs. authority: signs them where no issuer does; clock: now, for tests."""

    def __init__(self, api: Api, authority: KeyPair, options: Options, clock: Callable[[], datetime]) -> None:
        self._api = api
        self._authority = authority
        self._options = options
        self._clock = clock
        self._due: dict[tuple[str, str], tuple[str, datetime]] = {}

    def due(self, job: Job) -> bool:
        """Whether a job's are to be looked at now."""
        uid, when = self._due.get((job.namespace, job.name), ("", None))
        return uid != job.uid or when is None or self._clock() >= when

    def forget(self, namespace: str, name: str) -> None:
        """The job is gone."""
        self._due.pop((namespace, name), None)

    async def uncertified(self, job: Job) -> str:
        """Why cert-manager has not issued a job's certificates; empty when it has, or nobody asks it."""
        for role in ROLES if self._options.certificate_issuer else ():
            if why := await unissued(self._api, self._asked(job, role)):
                return why
        return ""

    async def write(self, job: Job) -> None:
        """What is missing, before pods mount it. Raises ApiFailure."""
        for role in ROLES:
            await self._provide(job, role, await self._stored(job, role))
        self._due[job.namespace, job.name] = (job.uid, self._clock() + CERTIFICATES_EVERY)

    async def renew(self, job: Job) -> str:
        """Renews those of pods that run; returns why one that should be renewed is not.

        A refusal is no ApiFailure here: the pods go on with what they have for now, and so does the job.
        """
        late = []
        for role in ROLES:
            stored = await self._stored(job, role)
            try:
                why = await self._provide(job, role, stored)
            except ApiFailure as failure:
                why = failure.message
            if why:
                ends = end(stored)
                known = f"ends {format_time(ends)} and" if ends else "that its pods have"
                late.append(f"the certificate in Secret {identity_name(job, role)} {known} is not renewed: {why}")
        self._due[job.namespace, job.name] = (job.uid, self._clock() + (AGAIN if late else CERTIFICATES_EVERY))
        return "; ".join(late)

    async def _provide(self, job: Job, role: str, stored: Manifest | None) -> str:
        """Writes a role's Secret, or asks cert-manager for it; returns why cert-manager is late."""
        now = self._clock()
        if self._options.certificate_issuer:
            asked = self._asked(job, role)
            found = await self._api.get("Certificate", asked["metadata"]["name"], job.namespace)
            if found is None or not is_as_asked(asked, found):
                found = await self._api.apply(asked)
            await self._own(job, stored)
            return await unrenewed(self._api, asked, found, now)
        foreign = stored is not None and not job.owns(stored)  # it goes with an earlier job of this name
        if foreign or needs_renewal(stored, self._authority, now):
            await self._api.apply(identity_secret(job, role, self._authority, now, self._options))
        return ""

    async def _own(self, job: Job, stored: Manifest | None) -> None:
        """Makes a Secret go with the job: cert-manager keeps those of deleted Certificates, but with an option."""
        owners = (stored or {}).get("metadata", {}).get("ownerReferences", ())
        if stored is not None and not any(one["uid"] == job.uid or one["kind"] == "Certificate" for one in owners):
            owner = {**job.owner(), "controller": False}  # with that option the Certificate is its controller
            operations = [{"op": "add", "path": "/metadata/ownerReferences", "value": [owner]}]
            await self._api.patch("Secret", stored["metadata"]["name"], job.namespace, operations)

    async def _stored(self, job: Job, role: str) -> Manifest | None:
        return await self._api.get("Secret", identity_name(job, role), job.namespace)

    def _asked(self, job: Job, role: str) -> Manifest:
        return certificate_request(job, role, self._options.certificate_issuer, self._options)
