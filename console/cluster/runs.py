"""What a job's run says of itself: curves, phases, engines, its own events, newest responses.

Asked of the run's ControllerService with the console's own certificate, after the API server has shown the person the
job. The answers come from a tenant's pod, next to model output: messages are small, lists and texts are cut, numbers
are finite. Rows of metrics are kept by job and attempt, so that a page asks for the new ones only, and the curves of a
run that has ended stay as long as this process does.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from google.protobuf.message import Message

from crescendo.common.control import ControllerClient
from crescendo.common.errors import CrescendoError
from crescendo.console.cluster.actions import stages
from crescendo.console.cluster.view import plain
from crescendo.console.render import CHART_FIELDS
from crescendo.proto.v1 import controller_pb2

PORT: Final = 8444
PATIENCE_S: Final = 4.0
MAX_ANSWER_BYTES: Final = 8 << 20
ROWS_A_CALL: Final = 1000
KEPT_ROWS: Final = 5000
KEPT_JOBS: Final = 32
SHOWN_EVENTS: Final = 30
SHOWN_SAMPLES: Final = 4
MAX_ENTRIES: Final = 512
MAX_VALUE: Final = 2.0**53
Manifest = dict[str, Any]
Rows = list[controller_pb2.MetricsRow]


@dataclass(frozen=True)
class Seen:
    """What is known of a run. live: whether its controller answered just now; problem: why it did not."""

    status: controller_pb2.RunStatus
    rows: Sequence[controller_pb2.MetricsRow] = ()
    events: Sequence[controller_pb2.Event] = ()
    samples: Sequence[controller_pb2.Sample] = ()
    live: bool = False
    problem: str = ""

    @property
    def engines(self) -> list[str]:
        """Ids of the engines."""
        return [worker.worker_id for worker in self.status.workers if worker.role == "rollout"]


class Runs(Protocol):
    """Where the pages ask."""

    async def look(self, job: Manifest, *, samples: bool) -> Seen: ...


def service_address(job: Manifest) -> str:
    """Where a job's ControllerService answers; the operator makes that Service."""
    return f"{job['metadata']['name']}-controller.{job['metadata']['namespace']}.svc:{PORT}"


@dataclass
class _Kept:
    """Rows of one attempt. known: how many rows the controller has told, those not kept included."""

    rows: Rows = field(default_factory=list)
    known: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class ControllerRuns:
    """Runs over gRPC. address_of: where a job's controller answers."""

    def __init__(self, address_of: Callable[[Manifest], str] = service_address) -> None:
        self._address_of = address_of
        self._kept: OrderedDict[tuple[str, int], _Kept] = OrderedDict()

    async def look(self, job: Manifest, *, samples: bool) -> Seen:
        """The run as it is, or what the RLJob says of it; samples: whether the person may read model output."""
        kept = self._keep(job)
        if (job.get("status") or {}).get("phase") not in ("Running", "Suspending"):
            return Seen(status_of(job), kept.rows)
        client = ControllerClient(self._address_of(job), "", max_answer_bytes=MAX_ANSWER_BYTES)
        try:
            async with asyncio.timeout(PATIENCE_S):
                status = await client.status()
                await self._extend(kept, client)
                events = (await client.events(0))[-SHOWN_EVENTS:]
                shown = (await client.samples(SHOWN_SAMPLES))[:SHOWN_SAMPLES] if samples else ()
        except (CrescendoError, TimeoutError) as error:
            return Seen(status_of(job), kept.rows, problem=str(error) or f"no answer within {PATIENCE_S:.0f} s")
        finally:
            await client.close()
        for message in (status, *events, *shown):
            cut(message)
        return Seen(status, kept.rows, events, shown, live=True)

    def _keep(self, job: Manifest) -> _Kept:
        key = (str(job["metadata"]["uid"]), int((job.get("status") or {}).get("attempt", 0)))
        kept = self._kept.setdefault(key, _Kept())
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT_JOBS:
            self._kept.popitem(last=False)
        return kept

    async def _extend(self, kept: _Kept, client: ControllerClient) -> None:
        async with kept.turn:
            while True:
                found = await client.metrics(kept.known, limit=ROWS_A_CALL)
                kept.known += len(found)
                kept.rows.extend(row for row in map(charted, found) if "iteration" in row.values)
                del kept.rows[:-KEPT_ROWS]
                if len(found) < ROWS_A_CALL:
                    return


def charted(row: controller_pb2.MetricsRow) -> controller_pb2.MetricsRow:
    """A row with nothing but what the charts show."""
    values = {name: row.values[name] for name in CHART_FIELDS if name in row.values}
    drawable = {name: value for name, value in values.items() if abs(value) < MAX_VALUE}
    return controller_pb2.MetricsRow(stage=row.stage[:64], values=drawable)


def cut(message: Message) -> None:
    """Bounds a message of a tenant in place: lists and texts are cut, numbers beyond reason become 0."""
    for description, value in message.ListFields():
        name = description.name
        if isinstance(value, Message):
            cut(value)
        elif isinstance(value, str):
            setattr(message, name, plain(value))
        elif isinstance(value, float) and not abs(value) < MAX_VALUE:
            setattr(message, name, 0.0)
        elif hasattr(value, "keys"):
            for key in list(value.keys()):
                if isinstance(value[key], float) and not abs(value[key]) < MAX_VALUE:
                    del value[key]
            for key in list(value.keys())[MAX_ENTRIES:]:
                del value[key]
        elif hasattr(value, "MergeFrom"):
            del value[:-MAX_ENTRIES]
            for entry in value:
                if isinstance(entry, Message):
                    cut(entry)


def status_of(job: Manifest) -> controller_pb2.RunStatus:
    """What the RLJob itself says of its run: stages of the spec, numbers that the operator wrote."""
    told = (job.get("status") or {}).get("progress") or {}
    present, names = str(told.get("stage", "")), [str(stage["name"]) for stage in stages(job)]
    reached = names.index(present) if present in names else -1
    ended = (job.get("status") or {}).get("phase") == "Succeeded"
    status = controller_pb2.RunStatus(name=job["metadata"]["name"], phase="stopped", stage=present, eta_seconds=-1)
    for number, stage in enumerate(stages(job)):
        done = number < reached or (ended and number == reached)
        status.stages.add(
            name=str(stage["name"]),
            state="done" if done else "active" if number == reached else "waiting",
            max_response_tokens=int(stage.get("maxResponseTokens") or 0),
            entered_iteration=-1,
            gate=str((stage.get("gate") or {}).get("name", "")),
        )
    return status
