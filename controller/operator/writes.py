"""What a decision about one RLJob says: the writes that are due, in order.

Made by plan.py, carried out by reconcile.py.
"""

from dataclasses import dataclass
from typing import Final

from crescendo.controller.operator.requests import Request
from crescendo.controller.operator.resource import Manifest

RESYNC_S: Final = 30.0
SOON_S: Final = 3.0


@dataclass(frozen=True)
class Call:
    """A verb of ControllerService: `stop` (with a commit) or `promote` (to a stage)."""

    verb: str
    stage: str = ""


@dataclass(frozen=True)
class Note:
    """An event on the RLJob. kind: Normal or Warning."""

    kind: str
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What to write, in this order; `status` None leaves the status alone.

    create: number of the attempt whose children are to exist; buffer: pods of the job's own buffer, None as it is;
    certify: ask for the certificates of an attempt that waits for them; renew: look after those of one that exists;
    ask: what people want of the run besides; scale: pods of the worker groups that are to change; delete: names of
    RayJobs; delete_job: the RLJob itself, its ttl being over.
    """

    create: int = 0
    buffer: int | None = None
    certify: bool = False
    renew: bool = False
    scale: tuple[tuple[str, int], ...] = ()
    calls: tuple[Call, ...] = ()
    ask: Request | None = None
    events: tuple[Note, ...] = ()
    status: Manifest | None = None
    delete: tuple[str, ...] = ()
    delete_job: bool = False
    again_s: float = RESYNC_S
