"""Events on an RLJob, as `kubectl describe` shows them."""

import hashlib
from datetime import datetime
from typing import Final

from crescendo.controller.operator.resource import API_VERSION, KIND, Job, Manifest, printable
from crescendo.controller.operator.writes import Note

NOTE_BYTES: Final = 1024  # the API server's limit, of UTF-8


def event_of(job: Job, note: Note, now: datetime) -> Manifest:
    """The event of a note; its name follows from what it says and when: a repeated write makes no second one."""
    stamp = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    digest = hashlib.sha256(f"{job.uid} {note.reason} {note.message} {now:%Y%m%d%H%M}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{job.name}.{digest}", "namespace": job.namespace},
        "eventTime": stamp,
        "type": note.kind,
        "reason": note.reason,
        "note": printable(note.message).encode()[:NOTE_BYTES].decode(errors="ignore"),
        "action": "Reconcile",
        "reportingController": "rl.crescendo.dev/operator",
        "reportingInstance": "crescendo-operator",
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": job.name,
            "namespace": job.namespace,
            "uid": job.uid,
        },
    }
