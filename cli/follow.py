"""Follows a run's controller: waits until it is up, yields what is new, ends when the run or the controller does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from crescendo.common.control import ControllerAddress, ControllerClient, read_controller
from crescendo.common.errors import CrescendoError, WorkerStartError
from crescendo.common.runfolder import RunFolder
from crescendo.common.telemetry import read_jsonl
from crescendo.proto.v1 import controller_pb2

INTERVAL_S = 0.5
POLL_S = 0.1
RECONNECTS = 20
ENDED_PHASES = ("done", "stopped", "failed")


@dataclass(frozen=True)
class Update:
    """A status, and the events since the update before."""

    status: controller_pb2.RunStatus
    events: tuple[controller_pb2.Event, ...]


async def wait_for_controller(
    folder: RunFolder, pid: int, is_alive: Callable[[], bool], limit_s: float
) -> ControllerAddress | None:
    """The address of the controller with a process id, once it serves; None when it ended first.

    Raises WorkerStartError after limit_s.
    """
    deadline = asyncio.get_running_loop().time() + limit_s
    while is_alive():
        found = read_controller(folder)
        if found is not None and found.pid == pid:
            return found
        if asyncio.get_running_loop().time() > deadline:
            raise WorkerStartError(
                f"the controller did not serve within {limit_s:.0f} s.",
                fix=f"See {folder.logs / 'controller.log'}; on a slow machine raise deadlines.start_s.",
            )
        await asyncio.sleep(POLL_S)
    return None


def last_event(folder: RunFolder) -> int:
    """Sequence number of the newest event in the run folder; 0 when there is none."""
    return max((int(row["sequence"]) for row in read_jsonl(folder.events)), default=0)


async def updates(client: ControllerClient, is_alive: Callable[[], bool], known: int) -> AsyncIterator[Update]:
    """Updates until the run has ended or the controller is gone; a lost stream is opened again.

    known: sequence number of the newest event that need not be told again.
    """
    failures = 0
    while is_alive():
        try:
            async for status in client.watch(INTERVAL_S):
                failures = 0
                events = await client.events(known)
                known = max((event.sequence for event in events), default=known)
                yield Update(status, tuple(events))
                if status.phase in ENDED_PHASES:
                    return
        except CrescendoError as error:
            failures += 1
            if not error.retryable or failures > RECONNECTS:
                raise
        await asyncio.sleep(INTERVAL_S)


@contextlib.asynccontextmanager
async def connected(folder: RunFolder, address: ControllerAddress) -> AsyncIterator[ControllerClient]:
    """A client of the controller, closed at the end."""
    client = ControllerClient(address.address, folder.read_token())
    try:
        yield client
    finally:
        await client.close()
