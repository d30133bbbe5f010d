"""What a run's controller says of itself, cut to size.

The controller runs in the tenant's pod, next to model output: its answers are data, never trusted. Names keep letters,
digits and a few marks; numbers are finite; counts are not negative; nothing is longer than the CRD allows.
"""

import contextlib
import math
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Protocol

from crescendo.common.control import ControllerClient
from crescendo.common.errors import CrescendoError, RequestError
from crescendo.controller.operator.requests import Request
from crescendo.controller.operator.resource import Report
from crescendo.controller.operator.writes import Call
from crescendo.proto.v1 import controller_pb2

_FORBIDDEN: Final = re.compile(r"[^A-Za-z0-9_.:/ -]")
MAX_METRICS: Final = 64
MAX_COUNT: Final = 2**53
SHOWN_FAILURE: Final = 512
MAX_ANSWER_BYTES: Final = 1 << 20


class Runs(Protocol):
    """The operator's side of ControllerService. Of them all only `report` raises: when the operator cannot ask."""

    async def report(self, address: str) -> Report | None: ...
    async def call(self, address: str, call: Call) -> bool: ...
    async def ask(self, address: str, request: Request) -> str | None: ...


class ControllerRuns:
    """Runs over gRPC with mTLS."""

    async def report(self, address: str) -> Report | None:
        """The run's status; None when it does not answer. Raises EnvironmentProblem: no certificate to ask with."""
        async with _client(address) as client:
            try:
                return sanitized(await client.status())
            except CrescendoError:
                return None

    async def call(self, address: str, call: Call) -> bool:
        """Carries a verb out; False when the controller did not take it."""
        try:
            async with _client(address) as client:
                if call.verb == "stop":
                    await client.stop(commit=True)
                elif call.verb == "promote":
                    await client.promote(call.stage)
                else:
                    raise ValueError(f"{call.verb} is not a verb of the plan")
        except CrescendoError:
            return False
        return True

    async def ask(self, address: str, request: Request) -> str | None:
        """Carries out what people want; returns why the controller refused, empty when it did not, None: no answer."""
        try:
            async with _client(address) as client:
                if request.verb == "pause":
                    await client.pause()
                elif request.verb == "unpause":
                    await client.resume()
                elif request.verb == "drain":
                    await client.drain(request.word)
                elif request.verb == "checkpoint":
                    await client.commit(wait_s=0.0)
                else:
                    await client.quarantine(request.engine)
        except RequestError as error:
            return text(error.message, SHOWN_FAILURE)
        except CrescendoError:
            return None
        return ""


@contextlib.asynccontextmanager
async def _client(address: str) -> AsyncIterator[ControllerClient]:
    """A client until its end; raises EnvironmentProblem when this process's certificate cannot be read."""
    client = ControllerClient(address, "", max_answer_bytes=MAX_ANSWER_BYTES)
    try:
        yield client
    finally:
        await client.close()


def sanitized(status: controller_pb2.RunStatus) -> Report:
    """A RunStatus as the operator keeps it."""
    return Report(
        phase=text(status.phase, 32),
        iteration=count(status.iteration),
        total_iterations=count(status.max_iterations),
        stage=text(status.stage, 31),
        weight_version=count(status.weight_version),
        committed_iteration=min(MAX_COUNT, max(-1, status.committed_iteration)),
        lease_holder=text(status.lease_state, 64),
        eta_s=number(status.eta_seconds),
        stopped=status.phase in ("stopped", "done", "failed"),
        failure=text(status.failure, SHOWN_FAILURE),
        metrics=_metrics(status.metrics),
        stage_devices=count(status.stage_devices),
        stage_rollout_devices=count(status.stage_rollout_devices),
    )


def text(value: str, limit: int) -> str:
    """Harmless characters only, at most so many."""
    return _FORBIDDEN.sub("?", value[: 4 * limit])[:limit]


def count(value: int) -> int:
    """A count between 0 and what JSON carries exactly."""
    return min(MAX_COUNT, max(0, value))


def number(value: float) -> float:
    """A finite number; -1 for what is not."""
    return value if math.isfinite(value) else -1.0


def _metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name in sorted(metrics)[:MAX_METRICS]:
        if math.isfinite(metrics[name]):
            found[text(name, 64)] = float(metrics[name])
    return found
