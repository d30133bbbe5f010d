"""Faults, done from outside: signals to processes, and connections to the buffer cut."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import redis

from crescendo.common.errors import CrescendoError
from crescendo.common.rpc import Client, Endpoint
from crescendo.controller.chaos.plan import CONNECTIONS, DISCONNECT, KILL, PAUSE, STOP, Fault
from crescendo.controller.chaos.targets import Target
from crescendo.proto.v1 import rollout_pb2, rollout_pb2_grpc

STATUS_S = 0.5
TAKES_ENGINES = ("engine", "controller", "raylet", "gcs", "command")


@dataclass
class Hit:
    """A fault that was done. unflushed: tokens that only engines had which it took down, by engine in flight;
    recovered_at: Unix time of the run's next step, 0 until then."""

    fault: Fault
    victim: str
    pid: int
    at: float
    unflushed: int = 0
    recovered_at: float = 0.0

    @property
    def seconds(self) -> float:
        """From the fault to the next step that the run completed; 0 while it has not."""
        return self.recovered_at - self.at if self.recovered_at else 0.0


@dataclass
class Injector:
    """Does faults to the processes of one run; `wake` ends the stops and pauses that are due."""

    buffer_url: str
    token: str
    stop_s: float  # longest stop: by then whoever watches has had time to act
    _asleep: list[tuple[float, Target]] = field(default_factory=list)

    async def inject(self, fault: Fault, target: Target, targets: Sequence[Target]) -> Hit:
        """Does it; a target that has just ended is no error."""
        taken = [one for one in targets if one.kind == "engine" and (one == target or target.kind != "engine")]
        costs_tokens = fault.kind in (KILL, STOP) and target.kind in TAKES_ENGINES
        unflushed = sum([await self._unflushed(one) for one in taken]) if costs_tokens else 0
        hit = Hit(fault, CONNECTIONS if fault.kind == DISCONNECT else target.kind, target.pid, time.time(), unflushed)
        if fault.kind == DISCONNECT:
            self._disconnect()
            return hit
        with contextlib.suppress(ProcessLookupError):
            os.kill(target.pid, signal.SIGKILL if fault.kind == KILL else signal.SIGSTOP)
        if fault.kind in (STOP, PAUSE):
            lasts_s = fault.seconds if fault.kind == PAUSE else self.stop_s
            self._asleep.append((time.monotonic() + lasts_s, target))
        return hit

    def wake(self, *, everybody: bool = False) -> None:
        """Continues what has been stopped long enough; a process that lives on as a zombie must do no harm."""
        now = time.monotonic()
        for until, target in [entry for entry in self._asleep if everybody or entry[0] <= now]:
            self._asleep.remove((until, target))
            with contextlib.suppress(ProcessLookupError):
                if target.alive():
                    os.kill(target.pid, signal.SIGCONT)

    def _disconnect(self) -> None:
        """Cuts every connection to the buffer but the one that says so."""
        server = redis.Redis.from_url(self.buffer_url, socket_timeout=STATUS_S)
        try:
            server.client_kill_filter(_type="normal", skipme=True)
        except redis.RedisError:
            return  # the server is down: nobody is connected
        finally:
            server.close()

    async def _unflushed(self, engine: Target) -> int:
        """Tokens that only the engine has, by its own account just before it is hit; 0 when it does not answer."""
        client = Client(Endpoint(engine.address, self.token), rollout_pb2_grpc.RolloutServiceStub)
        try:
            answer = await client.call(client.stub.GetStatus, rollout_pb2.GetRolloutStatusRequest(), timeout_s=STATUS_S)
        except CrescendoError:
            return 0
        finally:
            await client.close()
        return int(answer.progress.num_unflushed)
