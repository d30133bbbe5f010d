"""A thousand simulated workers on one buffer and one controller's lease clock: claim latency, and leases lost.

`make bench BENCH=workers` prints one JSON line. Each worker is an asyncio client of its own (its own connection) that
does what an engine does through the ExperienceBuffer seam: claims what it has room for, waiting on the wake-up key;
generates at a steady rate; flushes each trajectory's tokens every few seconds, which renews its lease; finishes.
Workers run in a few processes of their own. The controller's side opens groups, moves the lease clock every two
seconds as the controller does, and scores what is finished. The generation is fake; buffer, scripts, clock and bytes
are real.

`ours` is the 99th percentile of a claim that found work, `baseline` the same of a PING that the same worker sent on
the same kind of connection just before it: what process and socket cost without a ledger. `ratio` is claim over
ping. `held` is 1 when no lease of a living worker expired and no flush was refused; `lease_margin` is the longest time
that any lease went without renewal, as a share of the lease.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import multiprocessing
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crescendo.buffer import Claim, EmbeddedServer, NewGroup, RedisBuffer, Scored, Update, connect
from crescendo.common.types import Segment, TrajectoryId, TrajectoryState, group_id
from crescendo.proto.v1 import common_pb2
from tests.bench.harness import Measured, progress, report

RUN = "bench-workers"
SAMPLES = 16
PROMPT_TOKENS = 128
EXPIRY_CHECK_S = 2.0  # controller/loop/rollouts.py
CLAIM_WAIT_S = 0.1  # rollout/phase.py
OPEN_GROUPS = 64  # a refill


@dataclass(frozen=True)
class Plan:
    """What every worker does. tokens_per_s: of one trajectory; flush_s, lease_s: as in the run file."""

    url: str
    fence: tuple[int, int]
    seconds: float
    concurrency: int
    tokens_per_s: float
    mean_tokens: int
    flush_s: float
    lease_s: float

    @property
    def message(self) -> common_pb2.Fence:
        """The controller's fence."""
        return common_pb2.Fence(epoch=self.fence[0], counter=self.fence[1])


@dataclass
class Tally:
    """What workers saw; times in seconds."""

    claims_s: list[float] = field(default_factory=list)
    pings_s: list[float] = field(default_factory=list)
    flushes_s: list[float] = field(default_factory=list)
    longest_gap_s: float = 0.0
    num_lost: int = 0
    num_finished: int = 0
    num_tokens: int = 0


@dataclass
class Flight:
    """A trajectory that a worker holds."""

    identity: TrajectoryId
    length: int
    done: int = 0
    renewed_s: float = field(default_factory=time.monotonic)


class Worker:
    """One simulated engine."""

    def __init__(self, plan: Plan, number: int, tally: Tally) -> None:
        self._plan = plan
        self._name = f"worker-{number}"
        self._tally = tally
        self._random = random.Random(number)
        self._flights: dict[TrajectoryId, Flight] = {}
        self._tokens = np.arange(1 << 14, dtype=np.int32)
        self._log_probs = np.full(1 << 14, -0.5, dtype=np.float32)
        self._mask = np.ones(1 << 14, dtype=np.bool_)

    async def run(self, buffer: RedisBuffer, until_s: float) -> None:
        """Claims, generates and flushes until then."""
        await asyncio.sleep(self._random.random() * self._plan.flush_s)
        while time.monotonic() < until_s:
            await self._claim(buffer)
            await asyncio.sleep(self._plan.flush_s * self._random.uniform(0.8, 1.0))
            await self._flush(buffer)

    async def _claim(self, buffer: RedisBuffer) -> None:
        plan, room = self._plan, self._plan.concurrency - len(self._flights)
        if room <= 0:
            return
        asked = time.monotonic()
        await buffer._client.redis.ping()
        pinged = time.monotonic()
        claims = await self._ask(buffer, room, 0.0)
        if claims:
            self._tally.pings_s.append(pinged - asked)
            self._tally.claims_s.append(time.monotonic() - pinged)
        else:  # nothing to claim: waits for it, as engines do, and does not count
            claims = await self._ask(buffer, room, CLAIM_WAIT_S)
        for claim in claims:
            length = 1 + int(self._random.expovariate(1 / plan.mean_tokens))
            one = claim.trajectory
            self._flights[one.trajectory_id] = Flight(one.trajectory_id, length, one.num_tokens)

    async def _ask(self, buffer: RedisBuffer, limit: int, wait_s: float) -> list[Claim]:
        plan = self._plan
        return await buffer.claim(
            plan.message, self._name, limit=limit, lease_s=plan.lease_s, iteration=1, max_spans=0, wait_s=wait_s
        )

    async def _flush(self, buffer: RedisBuffer) -> None:
        if not self._flights:
            return
        updates = [self._update(flight) for flight in self._flights.values()]
        begun = time.monotonic()
        lost = await buffer.flush(self._plan.message, self._name, updates)
        now = time.monotonic()
        self._tally.flushes_s.append(now - begun)
        self._tally.num_lost += len(lost)
        for update in updates:
            flight = self._flights[update.trajectory_id]
            self._tally.longest_gap_s = max(self._tally.longest_gap_s, now - flight.renewed_s)
            flight.renewed_s = now
            if update.segment is not None:
                flight.done += len(update.segment.token_ids)
                self._tally.num_tokens += len(update.segment.token_ids)
            if update.state is TrajectoryState.FINISHED or update.trajectory_id in lost:
                self._tally.num_finished += update.trajectory_id not in lost
                del self._flights[update.trajectory_id]

    def _update(self, flight: Flight) -> Update:
        count = max(1, min(int(self._plan.tokens_per_s * self._plan.flush_s), flight.length - flight.done))
        ends = flight.done + count >= flight.length
        return Update(
            flight.identity,
            flight.done,
            Segment(1, 1, "8k", 0, self._tokens[:count], self._log_probs[:count], self._mask[:count]),
            TrajectoryState.FINISHED if ends else TrajectoryState.LEASED,
            common_pb2.FINISH_REASON_STOP if ends else common_pb2.FINISH_REASON_UNSPECIFIED,
        )


def work(plan: Plan, numbers: range) -> Tally:
    """A process of workers."""
    return asyncio.run(_work(plan, numbers))


async def _work(plan: Plan, numbers: range) -> Tally:
    tally = Tally()
    buffers = [await connect(plan.url, RUN) for _ in numbers]
    until_s = time.monotonic() + plan.seconds
    try:
        async with asyncio.TaskGroup() as group:
            for number, buffer in zip(numbers, buffers, strict=True):
                group.create_task(Worker(plan, number, tally).run(buffer, until_s))
    finally:
        for buffer in buffers:
            await buffer.close()
    return tally


class Controller:
    """The controller's side of the ledger. expired: leases that ran out; late_s: of the worst tick of the clock."""

    def __init__(self, buffer: RedisBuffer, fence: common_pb2.Fence, wanted: int) -> None:
        self._buffer = buffer
        self._fence = fence
        self._wanted = wanted
        self._opened = 0
        self.expired = 0
        self.late_s = 0.0

    async def run(self) -> None:
        """Until it is cancelled."""
        await self.refill()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tick())
            group.create_task(self._score())
            group.create_task(self._open())

    async def refill(self) -> None:
        """Opens groups until as much is pending as a few refills hold."""
        while (await self._buffer.counts())["trajectories.pending"] < self._wanted:
            groups = [
                NewGroup(group_id(0, 1, draw), _prompt(draw), 0, 1, "8k", SAMPLES)
                for draw in range(self._opened, self._opened + OPEN_GROUPS)
            ]
            await self._buffer.open_groups(self._fence, groups)
            self._opened += OPEN_GROUPS

    async def _open(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            await self.refill()

    async def _tick(self) -> None:
        due = time.monotonic()
        while True:
            due += EXPIRY_CHECK_S
            await asyncio.sleep(due - time.monotonic())
            self.expired += len(await self._buffer.expire_leases(self._fence))
            self.late_s = max(self.late_s, time.monotonic() - due)

    async def _score(self) -> None:
        component = common_pb2.RewardComponent(name="answer", raw=1.0, weight=1.0)
        while True:
            claims = await self._buffer.claim_finished(self._fence, limit=256, wait_s=1.0)
            scored = [Scored(claim.trajectory.trajectory_id, (component,)) for claim in claims]
            await self._buffer.score(self._fence, scored)


def _prompt(draw: int) -> common_pb2.Prompt:
    tokens = np.random.default_rng(draw).integers(0, 150_000, PROMPT_TOKENS).tolist()
    return common_pb2.Prompt(prompt_id=f"p{draw}", token_ids=tokens, domain="math", gold_answers=["42"])


async def measure(arguments: argparse.Namespace, url: str) -> tuple[list[Tally], Controller]:
    """Workers in their processes, the controller in this one."""
    buffer = await connect(url, RUN)
    fence = await buffer.acquire_epoch()
    plan = Plan(
        url, (fence.epoch, fence.counter), arguments.seconds, arguments.concurrency, arguments.tokens_per_s,
        arguments.mean_tokens, arguments.flush_s, arguments.lease_s,
    )  # fmt: skip
    controller = Controller(buffer, fence, 2 * arguments.workers)
    await controller.refill()
    running = asyncio.create_task(controller.run())
    share = -(-arguments.workers // arguments.processes)
    parts = [range(start, min(start + share, arguments.workers)) for start in range(0, arguments.workers, share)]
    context = multiprocessing.get_context("spawn")
    try:
        with concurrent.futures.ProcessPoolExecutor(len(parts), context) as pool:
            loop = asyncio.get_running_loop()
            found = await asyncio.gather(*(loop.run_in_executor(pool, work, plan, part) for part in parts))
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await buffer.close()
    return list(found), controller


def milliseconds(values: list[float], percent: float) -> float:
    """A percentile of seconds, in milliseconds."""
    return round(1000 * float(np.percentile(values, percent)), 2)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2, help="that the workers are spread over")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--concurrency", type=int, default=8, help="trajectories that a worker holds")
    parser.add_argument("--tokens-per-s", type=float, default=50.0, help="of one trajectory")
    parser.add_argument("--mean-tokens", type=int, default=1000)
    parser.add_argument("--flush-s", type=float, default=5.0, help="rollout.flush_s of the run file")
    parser.add_argument("--lease-s", type=float, default=60.0, help="rollout.lease_s of the run file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder) / "buffer")
        url = server.start()
        try:
            progress(f"{arguments.workers} workers for {arguments.seconds:.0f} s")
            tallies, controller = asyncio.run(measure(arguments, url))
        finally:
            server.stop()
    claims = [value for tally in tallies for value in tally.claims_s]
    pings = [value for tally in tallies for value in tally.pings_s]
    lost = sum(tally.num_lost for tally in tallies)
    details = {
        "workers": arguments.workers,
        "seconds": arguments.seconds,
        "held": int(controller.expired == 0 and lost == 0),
        "leases_expired": controller.expired,
        "leases_lost": lost,
        "lease_margin": round(max(tally.longest_gap_s for tally in tallies) / arguments.lease_s, 3),
        "clock_late_s": round(controller.late_s, 3),
        "claims": len(claims),
        "claim_ms_p50": milliseconds(claims, 50),
        "claim_ms_p99": milliseconds(claims, 99),
        "ping_ms_p50": milliseconds(pings, 50),
        "ping_ms_p99": milliseconds(pings, 99),
        "flush_ms_p99": milliseconds([value for tally in tallies for value in tally.flushes_s], 99),
        "trajectories_finished": sum(tally.num_finished for tally in tallies),
        "tokens_flushed": sum(tally.num_tokens for tally in tallies),
    }
    report(Measured("workers", milliseconds(claims, 99), milliseconds(pings, 99), "ms a claim, p99", details))


if __name__ == "__main__":
    main()
