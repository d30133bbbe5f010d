"""A certificate whose successor does not come, as the RLJob tells it. Pure.

it is late, pods run    -> condition CertificateExpiring and a Warning event; a running job's reason
it comes                -> the condition is False, a Normal event
the pods go             -> the condition is False (status.py)
"""

from dataclasses import replace
from datetime import datetime

from crescendo.controller.operator.resource import EXPIRING, Job
from crescendo.controller.operator.status import Draft
from crescendo.controller.operator.writes import Note, Plan


def with_renewal(job: Job, decided: Plan, late: str, now: datetime) -> Plan:
    """A plan with what a look at the certificates found. late: why one is not renewed; empty when all are."""
    status = dict(job.status) if decided.status is None else decided.status
    draft = Draft(replace(job, status=status), now)
    told = draft.holds(EXPIRING)
    notes: tuple[Note, ...] = ()
    if late:
        draft.condition(EXPIRING, True, "NotRenewed", late)
        notes = () if told else (Note("Warning", EXPIRING, late),)
    elif told:
        draft.condition(EXPIRING, False, "Renewed")
        notes = (Note("Normal", "CertificateRenewed", "the certificates of its pods are renewed"),)
    if draft.value.get("phase") == "Running" and draft.value.get("reason") in ("Running", EXPIRING):
        draft.running()
    changed = draft.value != dict(job.status)
    return replace(decided, status=draft.value if changed else None, events=(*decided.events, *notes))
