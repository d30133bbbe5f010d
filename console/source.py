"""Where the console reads a run from: a living controller, or the files of one that ended.

`RunSource` is the seam. `LiveRun` asks ControllerService; `FinishedRun` reads the run folder and refuses
verbs; `SwitchingRun`, which the server uses, is the first while the controller lives and the second after.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from google.protobuf.json_format import ParseDict, ParseError

from crescendo.common.config import Config, load_resolved
from crescendo.common.control import ControllerClient, read_controller
from crescendo.common.errors import RequestError, WorkerLostError
from crescendo.common.runfolder import RunFolder
from crescendo.common.telemetry import read_jsonl
from crescendo.proto.v1 import controller_pb2

VERBS = ("pause", "resume", "promote")
KEPT_EVENTS = 200
T = TypeVar("T")


class RunSource(Protocol):
    """One run as the console sees it."""

    async def status(self) -> controller_pb2.RunStatus:
        """The status; phase is done, stopped or failed when no controller lives."""
        ...

    async def metrics(self, num_known: int) -> Sequence[controller_pb2.MetricsRow]:
        """Rows after the first num_known."""
        ...

    async def events(self) -> Sequence[controller_pb2.Event]:
        """The newest events, oldest first."""
        ...

    async def samples(self, limit: int) -> Sequence[controller_pb2.Sample]:
        """The newest scored responses, newest first."""
        ...

    async def act(self, verb: str, stage: str) -> str:
        """Does one of VERBS; returns what to tell the person. Raises a CrescendoError when it can't."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...


class LiveRun:
    """A run whose controller serves at an address."""

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self._client = ControllerClient(address, token)

    async def status(self) -> controller_pb2.RunStatus:
        """See RunSource."""
        return await self._client.status()

    async def metrics(self, num_known: int) -> Sequence[controller_pb2.MetricsRow]:
        """See RunSource."""
        return await self._client.metrics(num_known)

    async def events(self) -> Sequence[controller_pb2.Event]:
        """See RunSource."""
        return (await self._client.events(0))[-KEPT_EVENTS:]

    async def samples(self, limit: int) -> Sequence[controller_pb2.Sample]:
        """See RunSource."""
        return await self._client.samples(limit)

    async def act(self, verb: str, stage: str) -> str:
        """See RunSource."""
        if verb == "pause":
            await self._client.pause()
            return "The run pauses at its next safe point."
        if verb == "resume":
            await self._client.resume()
            return "The run goes on."
        if verb == "promote":
            entered = await self._client.promote(stage)
            return f"The run enters stage {entered} after this iteration." if entered else "The last stage ends."
        raise RequestError(f"{verb!r} is no verb; there are: {', '.join(VERBS)}.", field="verb")

    async def close(self) -> None:
        """See RunSource."""
        await self._client.close()


class FinishedRun:
    """A run without a living controller, from its folder's files."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    async def status(self) -> controller_pb2.RunStatus:
        """See RunSource."""
        rows, events = await self.metrics(0), await self.events()
        summary = self._summary()
        failed = bool(events) and events[-1].kind == "run.failed"
        status = controller_pb2.RunStatus(
            run_id=self._folder.run_id(),
            name=self._folder.root.name,
            phase="done" if summary else "failed" if failed else "stopped",
            failure=events[-1].message if failed else "",
            message=events[-1].message if events else "",
            eta_seconds=-1,
            committed_iteration=-1,
        )
        trained = [row for row in rows if "iteration" in row.values]
        if trained:
            status.step, status.stage = "rl", trained[-1].stage
            status.iteration = int(trained[-1].values["iteration"])
            status.metrics.update(trained[-1].values)
        status.stages.extend(_stages(load_resolved(self._folder.config), trained, summary))
        return status

    async def metrics(self, num_known: int) -> Sequence[controller_pb2.MetricsRow]:
        """See RunSource."""
        rows = []
        for number, stored in enumerate(read_jsonl(self._folder.metrics)):
            values = {key: value for key, value in stored.items() if isinstance(value, int | float)}
            rows.append(controller_pb2.MetricsRow(row=number, stage=str(stored.get("stage", "")), values=values))
        return rows[num_known:]

    async def events(self) -> Sequence[controller_pb2.Event]:
        """See RunSource."""
        return _messages(list(read_jsonl(self._folder.events))[-KEPT_EVENTS:], controller_pb2.Event)

    async def samples(self, limit: int) -> Sequence[controller_pb2.Sample]:
        """See RunSource."""
        newest = list(read_jsonl(self._folder.samples))[-limit:]
        return _messages(newest[::-1], controller_pb2.Sample)

    async def act(self, verb: str, stage: str) -> str:
        """Refuses: there is nobody to do it."""
        raise RequestError(
            "the run is not going on, so it takes no verbs.",
            field="verb",
            fix=f"Continue it: crescendo resume {self._folder.root}",
        )

    async def close(self) -> None:
        """Nothing is held."""

    def _summary(self) -> dict[str, Any]:
        if not self._folder.summary.exists():
            return {}
        loaded: dict[str, Any] = json.loads(self._folder.summary.read_text())
        return loaded


class SwitchingRun:
    """The living run while there is one, what it left otherwise; follows a resumed run to its new controller."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._live: LiveRun | None = None
        self._finished = FinishedRun(folder)

    async def status(self) -> controller_pb2.RunStatus:
        """See RunSource."""
        return await self._read(lambda source: source.status())

    async def metrics(self, num_known: int) -> Sequence[controller_pb2.MetricsRow]:
        """See RunSource."""
        return await self._read(lambda source: source.metrics(num_known))

    async def events(self) -> Sequence[controller_pb2.Event]:
        """See RunSource."""
        return await self._read(lambda source: source.events())

    async def samples(self, limit: int) -> Sequence[controller_pb2.Sample]:
        """See RunSource."""
        return await self._read(lambda source: source.samples(limit))

    async def act(self, verb: str, stage: str) -> str:
        """See RunSource."""
        return await (await self._current()).act(verb, stage)

    async def close(self) -> None:
        """See RunSource."""
        if self._live is not None:
            await self._live.close()

    async def _current(self) -> RunSource:
        found = read_controller(self._folder)
        if self._live is not None and (found is None or found.address != self._live.address):
            await self._live.close()
            self._live = None
        if found is not None and self._live is None:
            self._live = LiveRun(found.address, self._folder.read_token())
        return self._live or self._finished

    async def _read(self, question: Callable[[RunSource], Awaitable[T]]) -> T:
        try:
            return await question(await self._current())
        except WorkerLostError:
            return await question(self._finished)


def _messages(rows: Sequence[dict[str, Any]], kind: Callable[[], T]) -> list[T]:
    found = []
    for row in rows:
        try:
            found.append(ParseDict(row, kind(), ignore_unknown_fields=True))  # type: ignore[type-var]
        except ParseError:
            continue  # a row of another version: the rest is still worth showing
    return found


def _stages(
    config: Config, rows: Sequence[controller_pb2.MetricsRow], summary: dict[str, Any]
) -> list[controller_pb2.StageStatus]:
    """The stage track: the run file's stages with what summary, or else the metrics, say about each."""
    ended = {stage["name"]: stage for stage in summary.get("stages", ())}
    entered: dict[str, int] = {}
    for row in rows:
        entered.setdefault(row.stage, int(row.values["iteration"]))
    newest = rows[-1].stage if rows else ""
    found = []
    for step in config.steps:
        for stage in step.rl.stages if step.kind == "rl" else ():
            facts = ended.get(stage.name, {})
            seen = stage.name in entered
            left = bool(facts.get("left_by")) or (seen and (bool(summary) or stage.name != newest))
            found.append(
                controller_pb2.StageStatus(
                    name=stage.name,
                    state="done" if left else "active" if seen else "waiting",
                    max_response_tokens=stage.max_response_tokens,
                    entered_iteration=_entered(facts.get("entered_iteration"), entered.get(stage.name, -1)),
                    left_by=str(facts.get("left_by") or ""),
                    accuracy=float(facts.get("accuracy") or 0.0),
                    gate=stage.gate.name,
                )
            )
    return found


def _entered(recorded: int | None, seen: int) -> int:
    return seen if recorded is None else recorded
