"""Transient verbs on a running job: an annotation asks, ControllerService does it, the status acknowledges. Pure.

    rl.crescendo.dev/request: "pause 7f3a"      verb, for quarantine ":" and the engine, and any new word

Who may ask for which is decided before the annotation is stored: the chart's ValidatingAdmissionPolicy has the API
server review the person's access to rljobs/<verb>. The word makes a wish a new one; what was acknowledged is not done
again. A wish for a job that does not run is refused, not kept.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from crescendo.controller.operator.crd import GROUP
from crescendo.controller.operator.resource import Job, Manifest, format_time

ANNOTATION: Final = f"{GROUP}/request"
VERBS: Final = ("pause", "unpause", "drain", "checkpoint", "quarantine")
_FORM: Final = re.compile(r"(?:(pause|unpause|drain|checkpoint)|(quarantine):([a-z0-9-]{1,63})) ([A-Za-z0-9._-]{1,64})")
SHOWN: Final = 512


@dataclass(frozen=True)
class Request:
    """A wish. engine: of quarantine; word: what makes it a new one."""

    verb: str
    engine: str
    word: str

    def __str__(self) -> str:
        return f"{self.verb}:{self.engine} {self.word}" if self.engine else f"{self.verb} {self.word}"


def pending(job: Job) -> Request | str | None:
    """The wish that nobody has acknowledged yet; as text when it has not the form of one; None when there is none."""
    text = job.annotations.get(ANNOTATION, "")
    if not text or text[:SHOWN] == (job.status.get("request") or {}).get("text"):
        return None
    found = _FORM.fullmatch(text)
    return Request(found[1] or found[2], found[3] or "", found[4]) if found else text


def acknowledged(request: Request | str, refusal: str, now: datetime) -> Manifest:
    """status.request."""
    state = "Refused" if refusal else "Taken"
    return {"text": str(request)[:SHOWN], "state": state, "message": refusal[:SHOWN], "time": format_time(now)}
