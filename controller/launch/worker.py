"""One process of the run, as the controller sees it: how it is called, and how its calls end when it is lost.

    starting -> ready -> lost -> (replaced: a new Worker under the same name) | stopped

Fleet makes and ends workers, Supervisor declares them lost. A lost worker's calls end at once with
WorkerLostError, whatever their deadlines: a stopped process would otherwise hold up the run for hours.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from crescendo.common.errors import CrescendoError, DeadlineError, WorkerLostError
from crescendo.common.rpc import Client
from crescendo.common.service import ServiceSpec
from crescendo.controller.launch.cluster import ActorHandle
from crescendo.controller.launch.local import LocalProcess
from crescendo.proto.v1 import (
    archive_pb2,
    archive_pb2_grpc,
    common_pb2,
    reward_pb2,
    reward_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)

R = TypeVar("R")

STUBS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "trainer": (trainer_pb2_grpc.TrainerServiceStub, trainer_pb2.GetTrainerStatusRequest),
    "rollout": (rollout_pb2_grpc.RolloutServiceStub, rollout_pb2.GetRolloutStatusRequest),
    "reward": (reward_pb2_grpc.RewardServiceStub, reward_pb2.GetRewardStatusRequest),
    "executor": (reward_pb2_grpc.ExecutorServiceStub, reward_pb2.GetExecutorStatusRequest),
    "archiver": (archive_pb2_grpc.ArchiveServiceStub, archive_pb2.GetArchiveStatusRequest),
}


@dataclass(eq=False)
class Worker:
    """One service process and the client that talks to it (none for a rank that does not speak)."""

    spec: ServiceSpec
    bundle: int = 0
    state: str = "starting"
    process: ActorHandle | LocalProcess | None = None
    client: Client[Any] | None = None
    status: common_pb2.WorkerStatus = field(default_factory=common_pb2.WorkerStatus)
    why_lost: str = ""
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _calls: dict[int, float] = field(default_factory=dict)  # running calls: when each began

    @property
    def worker_id(self) -> str:
        """Name, stable over replacements: trainer-0, rollout-0, reward-0, executor-0, archiver-0."""
        return self.spec.worker_id

    @property
    def role(self) -> str:
        """trainer | rollout | reward | executor | archiver."""
        return self.spec.role

    @property
    def is_ready(self) -> bool:
        """Whether it may be called."""
        return self.state == "ready"

    @property
    def oldest_call_s(self) -> float:
        """Age of the oldest call that has not been answered; 0 when there is none."""
        return time.monotonic() - min(self._calls.values()) if self._calls else 0.0

    def lose(self, reason: str) -> None:
        """Declares it lost: running calls end now, and no other begins."""
        if self.state in ("lost", "stopped"):
            return
        self.state, self.why_lost = "lost", reason
        self._gone.set()

    async def call(self, method: str, request: Any, *, timeout_s: float, attempts: int = 1) -> Any:
        """Calls a method of the service by name; raises a CrescendoError that names the worker.

        A worker that lets the deadline of a call pass in silence is lost, but for GetStatus, which Supervisor judges.
        """
        begun = time.monotonic()
        try:
            stub_method = getattr(self._ready_client().stub, method)
            return await self._unless_lost(
                self._ready_client().call(stub_method, request, timeout_s=timeout_s, attempts=attempts)
            )
        except CrescendoError as error:
            if isinstance(error, DeadlineError) and method != "GetStatus" and time.monotonic() - begun >= timeout_s:
                self.lose(f"it did not answer {method} within {timeout_s:.0f} s")
            error.message = f"{self.worker_id}.{method}: {error.message}"
            raise

    async def stream(self, method: str, request: Any, *, timeout_s: float) -> AsyncIterator[Any]:
        """Calls a streaming method by name and yields its answers; errors as with `call`."""
        try:
            client = self._ready_client()
            answers = aiter(client.stream(getattr(client.stub, method), request, timeout_s=timeout_s))
            while (answer := await self._unless_lost(anext(answers, None))) is not None:
                yield answer
        except CrescendoError as error:
            error.message = f"{self.worker_id}.{method}: {error.message}"
            raise

    async def refresh(self, timeout_s: float) -> common_pb2.WorkerStatus:
        """Asks the service for its status and keeps it."""
        answer = await self.call("GetStatus", STUBS[self.role][1](), timeout_s=timeout_s)
        self.status = answer.worker
        return self.status

    def _ready_client(self) -> Client[Any]:
        if self.client is None or not self.is_ready:
            raise WorkerLostError(f"it is {self.state}{': ' + self.why_lost if self.why_lost else ''}.")
        return self.client

    async def _unless_lost(self, answer: Awaitable[R]) -> R:
        """The answer, or WorkerLostError as soon as the worker is declared lost."""
        asking = asyncio.ensure_future(answer)
        losing = asyncio.ensure_future(self._gone.wait())
        self._calls[id(asking)] = time.monotonic()
        try:
            await asyncio.wait((asking, losing), return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and not asking.cancelled():  # a closed channel cancels its calls
                return asking.result()
            raise WorkerLostError(f"the worker is lost: {self.why_lost or 'its channel was closed'}.")
        finally:
            del self._calls[id(asking)]
            losing.cancel()
            if not asking.done():
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
