"""Load on a whole reward service: replicas, executors, many clients, and some of each killed while it lasts.

Used by bench_reward_soak.py (full size) and tests/integration/test_reward_soak.py (small). A client sends all of its
requests at once; one that fails with a retryable error goes to the next replica, as the contract says. What is
counted: items without their right answer, processes left over, and how the memory of the survivors grows.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from crescendo.common.errors import CrescendoError
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.service import ServiceSpec
from crescendo.proto.v1 import common_pb2, reward_pb2, reward_pb2_grpc

TOKEN = "token-of-the-soak"
START_S = 120.0
REQUEST_S = 120.0
SETTLE_S = 20.0
KILL_AFTER_S = 0.1  # the doomed clients' slow items hold the workers, so that every call is still in flight
MAX_ATTEMPTS = 40
CHAIN = [reward_pb2.ScorerSpec(name="exact_match", weight=1.0, options={"marker": "#"})]
MATH = [reward_pb2.ScorerSpec(name="math_answer", weight=1.0)]
SLOW = rb"\boxed{99999999999!}"
# A client of its own process, with slow requests: it says that they are sent, and dies before their answers.
DOOMED = """
import asyncio, sys
from crescendo.proto.v1 import reward_pb2
from tests.bench.reward_soak import MATH, SLOW, open_clients
async def main():
    clients = open_clients(sys.argv[2:])
    item = reward_pb2.ScoreItem(item_id="slow", response=SLOW, gold_answers=["1"], chain=MATH)
    request = reward_pb2.ScoreRequest(items=[item] * 2, deadline_seconds=5.0)
    calls = [clients[n % len(clients)].stub.Score(request, metadata=clients[0].endpoint.metadata, timeout=60)
             for n in range(int(sys.argv[1]))]
    await asyncio.sleep(0.3)
    print("sent", flush=True)
    await asyncio.gather(*calls)
asyncio.run(main())
"""

RewardClient = Client[reward_pb2_grpc.RewardServiceStub]


@dataclass(frozen=True)
class Plan:
    """How much load, and who is killed."""

    num_clients: int = 50
    requests_per_client: int = 20
    items_per_request: int = 8
    num_doomed_clients: int = 4
    num_replicas: int = 2
    num_executors: int = 2
    workers: int = 1
    rounds: int = 4  # the kills happen in the second


@dataclass
class Outcome:
    """What a soak found. rates: items per second of the rounds without kills."""

    num_requests: int = 0
    num_items: int = 0
    num_lost: int = 0
    num_retries: int = 0
    num_orphans: int = 0
    rates: list[float] = field(default_factory=list)
    resident_mib: list[float] = field(default_factory=list)  # of the surviving services, after each round

    @property
    def growth_mib(self) -> float:
        """From the round of the kills to the last."""
        return self.resident_mib[-1] - self.resident_mib[1]


@dataclass
class Service:
    """One process of the reward service."""

    process: "subprocess.Popen[bytes]"
    address: str


def start(role: str, name: str, folder: Path, options: dict[str, str], address: str = "") -> Service:
    """Starts a service as the controller does and waits until it is ready."""
    token = TOKEN if role == "reward" else ""
    spec = ServiceSpec(role, name, "", "soak", token, address=address, options=options)
    spec_file, ready_file = folder / f"{name}.json", folder / f"{name}.ready"
    spec_file.write_text(spec.to_json())
    files = ["--spec-file", str(spec_file), "--ready-file", str(ready_file)]
    process = subprocess.Popen([sys.executable, "-m", "crescendo.reward_service", role, *files])
    deadline_s = time.monotonic() + START_S
    while not ready_file.exists():
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise AssertionError(f"{name} did not start")
        time.sleep(0.02)
    return Service(process, ready_file.read_text())


def open_clients(addresses: Sequence[str]) -> list[RewardClient]:
    """One client a replica."""
    return [Client(Endpoint(address, TOKEN), reward_pb2_grpc.RewardServiceStub) for address in addresses]


def make_items(number: int, count: int) -> tuple[list[reward_pb2.ScoreItem], list[bool]]:
    """Items of one request, and which of them are right; one in eight is mathematics."""
    items, expected = [], []
    for place in range(count):
        is_right = (number + place) % 3 == 0
        answer = number if is_right else number + 1
        is_math = place % 8 == 7
        response = rf"\boxed{{\frac{{{2 * answer}}}{{2}}}}" if is_math else f"so #{answer}"
        chain = MATH if is_math else CHAIN
        items.append(
            reward_pb2.ScoreItem(
                item_id=f"{number}-{place}", response=response.encode(), gold_answers=[str(number)], chain=chain
            )
        )
        expected.append(is_right)
    return items, expected


async def send(clients: Sequence[RewardClient], number: int, count: int, start_at: int) -> tuple[int, int]:
    """One request, to the next replica after each retryable error; returns (items lost, retries)."""
    items, expected = make_items(number, count)
    waiting = dict(zip((item.item_id for item in items), items, strict=True))
    verdicts: dict[str, bool] = {}
    retries = 0
    for attempt in range(MAX_ATTEMPTS):
        client = clients[(start_at + attempt) % len(clients)]
        request = reward_pb2.ScoreRequest(items=list(waiting.values()), deadline_seconds=20.0)
        try:
            answer = await client.call(client.stub.Score, request, timeout_s=REQUEST_S)
        except CrescendoError as error:
            if not error.retryable:
                raise
            retries += 1
            await asyncio.sleep(max(0.05, error.retry_after_s))
            continue
        for result in answer.results:
            if not result.HasField("fault"):
                waiting.pop(result.item_id)
                verdicts[result.item_id] = result.components[0].verdict == common_pb2.VERDICT_CORRECT
        if not waiting:
            break
        retries += 1
    right = sum(verdicts.get(item.item_id) is wanted for item, wanted in zip(items, expected, strict=True))
    return count - right, retries


class Soak:
    """One run of a plan in a folder of its own."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self._folder = folder
        options = {"workers": str(plan.workers), "scorers": "exact_match,math_answer", "attempts": "3"}
        self.executors = [start("executor", f"executor-{n}", folder, options) for n in range(plan.num_executors)]
        below = ",".join(executor.address for executor in self.executors)
        self.replicas = [start("reward", f"reward-{n}", folder, options, below) for n in range(plan.num_replicas)]
        self._started = self._processes()

    def run(self) -> Outcome:
        """All rounds; the services are ended, and what is left of them is counted."""
        try:
            for number in range(self.plan.rounds):
                asyncio.run(self._round(with_kills=number == 1))
                self.outcome.resident_mib.append(self._resident_mib())
        finally:
            seen = {**self._started, **self._processes()}
            for service in [*self.replicas, *self.executors]:
                service.process.terminate()
            for service in [*self.replicas, *self.executors]:
                service.process.wait(30)
        deadline_s = time.monotonic() + SETTLE_S
        while (left := [p for p in seen.values() if _lives(p)]) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        self.outcome.num_orphans = len(left)
        return self.outcome

    async def _round(self, *, with_kills: bool) -> None:
        addresses = [replica.address for replica in self.replicas]
        clients = [open_clients(addresses) for _ in range(self.plan.num_clients)]
        doomed = [self._start_doomed(addresses) for _ in range(self.plan.num_doomed_clients if with_kills else 0)]
        for client in doomed:
            assert client.stdout is not None
            await asyncio.to_thread(client.stdout.readline)
        started_s = time.perf_counter()
        calls = [
            asyncio.create_task(send(clients[c], c * 1000 + r, self.plan.items_per_request, c + r))
            for c in range(self.plan.num_clients)
            for r in range(self.plan.requests_per_client)
        ]
        if with_kills:
            await asyncio.sleep(KILL_AFTER_S)
            self._kill(doomed)
        found = await asyncio.gather(*calls)
        seconds = time.perf_counter() - started_s
        self.outcome.num_requests += len(calls)
        self.outcome.num_items += len(calls) * self.plan.items_per_request
        self.outcome.num_lost += sum(lost for lost, _ in found)
        self.outcome.num_retries += sum(retries for _, retries in found)
        if not with_kills:
            self.outcome.rates.append(len(calls) * self.plan.items_per_request / seconds)
        for client in (one for several in clients for one in several):
            await client.close()

    def _kill(self, doomed: Sequence["subprocess.Popen[bytes]"]) -> None:
        """Clients that have sent, one replica and one executor, all by SIGKILL."""
        for client in doomed:
            client.kill()
            client.wait(10)
            if client.stdout is not None:
                client.stdout.close()
        for services in (self.replicas, self.executors):
            victim = services.pop(0)
            victim.process.kill()
            victim.process.wait(10)

    def _start_doomed(self, addresses: Sequence[str]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", DOOMED, str(self.plan.requests_per_client), *addresses]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def _processes(self) -> dict[int, psutil.Process]:
        found: dict[int, psutil.Process] = {}
        for service in [*self.replicas, *self.executors]:
            top = psutil.Process(service.process.pid)
            found |= {process.pid: process for process in [top, *top.children(recursive=True)]}
        return found

    def _resident_mib(self) -> float:
        """Of the surviving replica and executor, without workers, which are replaced as they go."""
        pids = [self.replicas[-1].process.pid, self.executors[-1].process.pid]
        return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
