"""How people's tools (the command, the console) find and reach a run's controller.

The controller writes RunFolder.controller when it is up; the file stays behind when it dies, so the process
id in it is checked. A `ControllerClient` lives on the event loop that made it, until `close`.
"""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import cast

import psutil

from crescendo.common.errors import RunFolderError
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.rpc.channel import MAX_MESSAGE_BYTES
from crescendo.common.runfolder import RunFolder
from crescendo.proto.v1 import controller_pb2, controller_pb2_grpc

CALL_S = 10.0
VERB_S = 30.0
WATCH_S = 24 * 3600.0


@dataclass(frozen=True)
class ControllerAddress:
    """What RunFolder.controller says. address: host:port."""

    address: str
    pid: int


def read_controller(folder: RunFolder) -> ControllerAddress | None:
    """The run's living controller; None when it is not up, ended, or died."""
    try:
        stored = json.loads(folder.controller.read_text())
        found = ControllerAddress(str(stored["address"]), int(stored["pid"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{folder.controller} is damaged: {error!r}.", fix="Delete it and resume the run."
        ) from None
    try:
        alive = psutil.Process(found.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        alive = False
    return found if alive else None


class ControllerClient:
    """ControllerService of one run, each call with a deadline and typed errors.

    max_answer_bytes: of answers; less than the default for who asks runs that they do not trust.
    """

    def __init__(self, address: str, token: str, *, max_answer_bytes: int = MAX_MESSAGE_BYTES) -> None:
        endpoint = Endpoint(address, token)
        self._client = Client(endpoint, controller_pb2_grpc.ControllerServiceStub, max_answer_bytes=max_answer_bytes)

    async def status(self) -> controller_pb2.RunStatus:
        """The run's status now."""
        request = controller_pb2.GetRunStatusRequest()
        answer = await self._client.call(self._client.stub.GetStatus, request, timeout_s=CALL_S, attempts=3)
        return cast(controller_pb2.RunStatus, answer.status)

    async def watch(self, interval_s: float) -> AsyncIterator[controller_pb2.RunStatus]:
        """Statuses as they come, about every interval_s; ends or raises WorkerLostError with the controller."""
        request = controller_pb2.WatchStatusRequest(interval_seconds=interval_s)
        async for answer in self._client.stream(self._client.stub.WatchStatus, request, timeout_s=WATCH_S):
            yield answer.status

    async def metrics(self, num_known: int, *, limit: int = 0) -> Sequence[controller_pb2.MetricsRow]:
        """Metric rows after the first num_known, at most limit of them (0: all)."""
        request = controller_pb2.ListMetricsRequest(after_row=num_known, limit=limit)
        answer = await self._client.call(self._client.stub.ListMetrics, request, timeout_s=CALL_S, attempts=2)
        return cast(Sequence[controller_pb2.MetricsRow], answer.rows)

    async def events(self, after_sequence: int) -> Sequence[controller_pb2.Event]:
        """Events after a sequence number (0: all that are kept)."""
        request = controller_pb2.ListEventsRequest(after_sequence=after_sequence)
        answer = await self._client.call(self._client.stub.ListEvents, request, timeout_s=CALL_S, attempts=2)
        return cast(Sequence[controller_pb2.Event], answer.events)

    async def samples(self, limit: int) -> Sequence[controller_pb2.Sample]:
        """The newest scored responses."""
        request = controller_pb2.ListSamplesRequest(limit=limit)
        answer = await self._client.call(self._client.stub.ListSamples, request, timeout_s=CALL_S, attempts=2)
        return cast(Sequence[controller_pb2.Sample], answer.samples)

    async def pause(self) -> None:
        """Makes the run stand still at its next safe point."""
        await self._client.call(self._client.stub.PauseRun, controller_pb2.PauseRunRequest(), timeout_s=VERB_S)

    async def resume(self) -> None:
        """Lets a paused run go on."""
        await self._client.call(self._client.stub.ResumeRun, controller_pb2.ResumeRunRequest(), timeout_s=VERB_S)

    async def promote(self, stage: str) -> str:
        """Leaves the stage for the named one (empty: the next); returns the stage to be entered."""
        request = controller_pb2.PromoteStageRequest(stage=stage)
        answer = await self._client.call(self._client.stub.PromoteStage, request, timeout_s=VERB_S)
        return str(answer.stage)

    async def stop(self, *, commit: bool) -> None:
        """Ends the run at its next safe point, with a checkpoint if commit; it can be resumed."""
        request = controller_pb2.StopRunRequest(commit=commit)
        await self._client.call(self._client.stub.StopRun, request, timeout_s=VERB_S)

    async def commit(self, *, wait_s: float) -> int:
        """Commits after this iteration; returns the newest commit's iteration. wait_s: 0 does not wait for it."""
        request = controller_pb2.CommitRunRequest(deadline_seconds=wait_s, no_wait=not wait_s)
        answer = await self._client.call(self._client.stub.CommitRun, request, timeout_s=wait_s + VERB_S)
        return int(answer.iteration)

    async def drain(self, idempotency_key: str) -> None:
        """Ends this iteration, commits, and stands still."""
        request = controller_pb2.DrainRunRequest(idempotency_key=idempotency_key)
        await self._client.call(self._client.stub.DrainRun, request, timeout_s=VERB_S)

    async def quarantine(self, worker_id: str) -> None:
        """Takes an engine out of service."""
        request = controller_pb2.QuarantineEngineRequest(worker_id=worker_id)
        await self._client.call(self._client.stub.QuarantineEngine, request, timeout_s=VERB_S)

    async def scale_engines(self, num_engines: int) -> None:
        """Sets how many engines the run has."""
        request = controller_pb2.ScaleEnginesRequest(num_engines=num_engines)
        await self._client.call(self._client.stub.ScaleEngines, request, timeout_s=VERB_S)

    async def close(self) -> None:
        """Ends the channel."""
        await self._client.close()
