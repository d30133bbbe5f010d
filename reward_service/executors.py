"""The executors behind one reward process: which there are, which one gets a request, and what happens when it fails.

    address "10.0.0.1:7000,10.0.0.2:7000"    each is one executor
    address "executor:7000" (a name)         each address that the name resolves to is one; looked up again and again

    answers          the least loaded one gets the next request
    unreachable      another gets the request; this one is left alone for a while, longer each time
    full             another gets the request; this one is left alone for as long as it asked
    all full         wait as long as the first of them asked, within the caller's time

Lives on the reward process's event loop; `close` ends its channels.
"""

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from crescendo.common.errors import ConfigError, CrescendoError, DeadlineError, OverloadError, WorkerLostError
from crescendo.common.rpc import Client, Endpoint
from crescendo.proto.v1 import reward_pb2, reward_pb2_grpc

log = logging.getLogger(__name__)

RESOLVE_S = 5.0
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 5.0
MIN_WAIT_S = 0.05
# A request is tried at this many executors (the same one again where there is only one) before it fails.
CALL_ATTEMPTS = 3


@dataclass(frozen=True)
class Graded:
    """An executor's answer, and which executor gave it."""

    results: Sequence[reward_pb2.ScoreResult]
    executor: str = ""


class Executor(Protocol):
    """Where items are graded: the executors' client, or a stand-in."""

    async def execute(
        self, items: Sequence[reward_pb2.ScoreItem], deadline_s: float, timeout_s: float, *, fresh: bool, avoid: str
    ) -> Graded:
        """One result an item, in order; raises a CrescendoError if there are none.

        avoid: an executor that shall not be asked if there is another.
        """
        ...


class Member:
    """One executor as the reward process sees it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.client = Client(Endpoint(address, is_open=True), reward_pb2_grpc.ExecutorServiceStub)
        self.num_items = 0
        self.num_calls = 0
        self.free_at_s = 0.0  # monotonic time before which it is left alone
        self._pause_s = FIRST_PAUSE_S

    async def execute(self, request: reward_pb2.ExecuteRequest, timeout_s: float) -> Graded:
        """One call; remembers how it went."""
        self.num_items += len(request.items)
        self.num_calls += 1
        try:
            response = await self.client.call(self.client.stub.Execute, request, timeout_s=timeout_s)
        except OverloadError as error:
            self.free_at_s = _now_s() + max(MIN_WAIT_S, error.retry_after_s)
            raise
        except WorkerLostError as error:
            if self.free_at_s <= _now_s():  # else another call met the same loss, and has said so
                log.warning("executor %s is left alone for %g s: %s", self.address, self._pause_s, error.message)
                self.free_at_s = _now_s() + self._pause_s
                self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s)
            raise
        finally:
            self.num_items -= len(request.items)
        self._pause_s = FIRST_PAUSE_S
        return Graded(response.results, self.address)


class Executors:
    """`await Executors.connect(address)`, then `execute`; raises WorkerLostError, OverloadError or DeadlineError."""

    def __init__(self, targets: Sequence[str]) -> None:
        """targets: host:port each; call `refresh` before `execute`."""
        self.num_failovers = 0
        self._targets = tuple(targets)
        self._members: dict[str, Member] = {}
        self._refresher: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, address: str) -> "Executors":
        """Targets separated by commas; raises ConfigError when one is not host:port. Connects when first used."""
        targets = [target.strip() for target in address.split(",") if target.strip()]
        for target in targets:
            if not target.startswith("unix:") and not target.rpartition(":")[2].isdigit():
                raise ConfigError(f"executor address {target!r} is not host:port.", field="address")
        executors = cls(targets)
        await executors.refresh()
        if any(_is_name(target) for target in targets):
            executors._refresher = asyncio.create_task(executors._keep_fresh(), name="executor addresses")
        return executors

    @property
    def addresses(self) -> list[str]:
        """The executors known now."""
        return list(self._members)

    @property
    def num_ready(self) -> int:
        """Those that are not left alone at the moment."""
        return sum(member.free_at_s <= _now_s() for member in self._members.values())

    async def execute(
        self,
        items: Sequence[reward_pb2.ScoreItem],
        deadline_s: float,
        timeout_s: float,
        *,
        fresh: bool,
        avoid: str = "",
    ) -> Graded:
        """Asks one executor, then others as long as they fail, within timeout_s."""
        ends_s = _now_s() + timeout_s
        request = reward_pb2.ExecuteRequest(items=items, deadline_seconds=deadline_s, fresh=fresh)
        shunned = {avoid} if avoid else set()
        num_lost = 0
        last: CrescendoError = OverloadError("every executor is full or unreachable.", retry_after_s=MAX_PAUSE_S)
        while True:
            member = self._choose(shunned)
            if member is None:
                raise WorkerLostError("no executor has an address.", fix="Check the executors' address.")
            if (wait_s := member.free_at_s - _now_s()) > 0:
                if wait_s > ends_s - _now_s():
                    raise last
                await asyncio.sleep(wait_s)
                continue
            try:
                return await member.execute(request, max(0.001, ends_s - _now_s()))
            except CrescendoError as error:
                last = error
                num_lost += not isinstance(error, OverloadError)
                self._judge(error, num_lost, is_late=_now_s() >= ends_s)
            shunned.add(member.address)

    async def refresh(self) -> None:
        """Looks the names up; executors that are gone are let go of when their calls have ended."""
        found: set[str] = set()
        for target in self._targets:
            try:
                found |= await _resolve(target)
            except OSError as error:
                log.warning("executor address %s cannot be resolved: %s", target, error)
                return
        for address in sorted(found - self._members.keys()):
            self._members[address] = Member(address)
        for address in sorted(self._members.keys() - found):
            if not self._members[address].num_items:
                await self._members.pop(address).client.close()

    async def close(self) -> None:
        """Ends the channels."""
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.gather(self._refresher, return_exceptions=True)
        for member in self._members.values():
            await member.client.close()

    def _choose(self, shunned: Collection[str]) -> Member | None:
        """The least loaded of those that may be asked now; else the one that may be asked first."""
        now_s = _now_s()

        def rank(member: Member) -> tuple[float, bool, int, int]:
            wait_s = max(0.0, member.free_at_s - now_s)
            return wait_s, member.address in shunned, member.num_items, member.num_calls

        return min(self._members.values(), key=rank, default=None)

    def _judge(self, error: CrescendoError, num_lost: int, *, is_late: bool) -> None:
        """Raises what asking another executor cannot mend."""
        is_final = not error.retryable or isinstance(error, DeadlineError) or num_lost >= CALL_ATTEMPTS
        if is_final or is_late:
            raise error
        self.num_failovers += 1

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(RESOLVE_S)
            await self.refresh()


async def _resolve(target: str) -> set[str]:
    if not _is_name(target):
        return {target}
    host, _, port = target.rpartition(":")
    found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    return {f"[{place[0]}]:{port}" if ":" in str(place[0]) else f"{place[0]}:{port}" for *_, place in found}


def _is_name(target: str) -> bool:
    if target.startswith("unix:"):
        return False
    try:
        ipaddress.ip_address(target.rpartition(":")[0].strip("[]"))
    except ValueError:
        return True
    return False


def _now_s() -> float:
    return time.monotonic()  # not the loop's: metrics are read in a thread
