"""Engines that ask for one version at about the same time are served in one round.

    join -> wait until as many are there as took the last round, or nobody came for WINDOW_S -> serve -> all go

Each engine's thread calls `join`; whichever gets the turn leads the round of all who wait. A round that breaks is told
to its members as WorkerLostError, and they ask again: without the one that was lost. Who comes later gets a later
round.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from crescendo.common.errors import CrescendoError, DeadlineError, WorkerLostError
from crescendo.common.rpc.wire import Deadline, Wire

WINDOW_S = 0.5


@dataclass(eq=False)
class Member:
    """An engine's worker that asks. device: "cpu" or a GPU's UUID; taken: tensors that it has from a broken round."""

    wire: Wire
    version: int
    device: str = "cpu"
    taken: int = 0
    served: bool = False
    error: CrescendoError | None = None


class Rounds:
    """One round at a time."""

    def __init__(self, serve: Callable[[int, list[Member], Deadline], None]) -> None:
        """serve: brings a version to members; raises a CrescendoError when that broke for any of them."""
        self._serve = serve
        self._turn = threading.Lock()
        self._came = threading.Condition()
        self._waiting: list[Member] = []
        self._expected = 0

    def join(self, member: Member, deadline: Deadline) -> None:
        """Returns when the member has the version; raises what broke its round."""
        with self._came:
            self._waiting.append(member)
            self._came.notify_all()
        try:
            if not self._turn.acquire(timeout=deadline.remaining_s):
                raise DeadlineError("no round for the weights began in time.")
            try:
                if not member.served:
                    self._lead(member.version, deadline)
            finally:
                self._turn.release()
        finally:
            with self._came:
                if member in self._waiting:
                    self._waiting.remove(member)
        if member.error is not None:
            raise member.error

    def _lead(self, version: int, deadline: Deadline) -> None:
        members = self._gather(version)
        error: CrescendoError | None = None
        try:
            self._serve(version, members, deadline)
        except CrescendoError as found:
            error = found
        broken = error is not None and error.retryable
        self._expected = len(members) - broken
        for member in members:
            member.served = True
            member.error = WorkerLostError(f"the round broke: {error}; ask again.") if broken else error

    def _gather(self, version: int) -> list[Member]:
        """Takes those who wait for the version."""

        def here() -> list[Member]:
            return [each for each in self._waiting if each.version == version]

        with self._came:
            count, last_s = 0, time.monotonic()
            while not 0 < self._expected <= len(here()):
                if len(here()) > count:
                    count, last_s = len(here()), time.monotonic()
                if not self._came.wait(last_s + WINDOW_S - time.monotonic()) and time.monotonic() >= last_s + WINDOW_S:
                    break
            found = here()
            self._waiting = [each for each in self._waiting if each not in found]
            return found
