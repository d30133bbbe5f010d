"""Trajectories per second through the whole ledger, against a raw redis-py pipeline that moves the same bytes.

`make bench BENCH=buffer` prints one JSON object. Ours: open, claim, two flushes (append, finish), claim
finished, score, record (which consumes), each with its script, packing and unpacking. Baseline: the same
prompts, segments, components and batches, packed beforehand, written and read back as raw bytes by plain SET,
GET, RPUSH and LRANGE in pipelines of the same size, without states, leases, fences or counters. Both sides take
turns on one embedded server. The target for `ratio` is 0.7. `ratio_plain_steps` compares with the baseline plus
one plain HSET for each change of state (claim, append, finish, score, consume), still without any guarantee.

What is built before either clock starts: prompts, segments, batches; for the baseline their bytes too. Ratios are
medians over rounds. `ratio_cpu` compares processor time, client and server together (`cpu_us`, a trajectory): wall time
also waits for the disk, and on a machine with other work for a core.
"""

import argparse
import asyncio
import gc
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import redis

from crescendo.buffer import EmbeddedServer, NewGroup, RedisBuffer, Scored, Update, connect
from crescendo.common.config.schema import BufferConfig
from crescendo.common.types import Segment, TrajectoryState, group_id, trajectory_id
from crescendo.proto.v1 import common_pb2, reward_pb2, trainer_pb2
from tests.bench.harness import machine

SAMPLES = 16
PROMPT_TOKENS = 128
SEGMENTS = 2
CLAIM = 256
BATCH_GROUPS = 16

_versions = itertools.count(1)


class Work:
    """What one round moves; built before the clock starts, for both sides."""

    def __init__(self, num_groups: int, tokens: int, iteration: int) -> None:
        self.iteration = iteration
        self.groups = [
            NewGroup(group_id(0, iteration, draw), _prompt(draw), 0, iteration, "8k", SAMPLES)
            for draw in range(num_groups)
        ]
        self.segments = [_segment(tokens, iteration, part) for part in range(SEGMENTS)]
        self.component = common_pb2.RewardComponent(name="math_answer", raw=1.0, weight=1.0, detail="42")
        self.num_trajectories = num_groups * SAMPLES
        self.batches = self._batches()
        self.raw_prompts = [group.prompt.SerializeToString() for group in self.groups]
        self.raw_segments = [segment.to_proto().SerializeToString() for segment in self.segments]
        self.raw_components = reward_pb2.ScoreResult(item_id="x" * 21, components=[self.component]).SerializeToString()
        self.raw_batches = [batch.SerializeToString() for batch in self.batches]

    def _batches(self) -> list[trainer_pb2.TrainBatch]:
        return [
            trainer_pb2.TrainBatch(
                iteration=self.iteration * 1000 + start,
                groups=[
                    trainer_pb2.TrainGroup(
                        group_id=group.group_id,
                        trajectory_ids=[trajectory_id(group.group_id, sample) for sample in range(SAMPLES)],
                        rewards=[1.0] * SAMPLES,
                    )
                    for group in self.groups[start : start + BATCH_GROUPS]
                ],
            )
            for start in range(0, len(self.groups), BATCH_GROUPS)
        ]


def _prompt(draw: int) -> common_pb2.Prompt:
    tokens = np.random.default_rng(draw).integers(0, 150_000, PROMPT_TOKENS).tolist()
    return common_pb2.Prompt(prompt_id=f"p{draw}", token_ids=tokens, domain="math", gold_answers=["42"])


def _segment(tokens: int, iteration: int, part: int) -> Segment:
    rng = np.random.default_rng(part)
    return Segment(
        weight_version=iteration,
        iteration=iteration,
        stage="8k",
        branch=0,
        token_ids=rng.integers(0, 150_000, tokens).astype(np.int32),
        log_probs=-rng.random(tokens).astype(np.float32),
        loss_mask=np.ones(tokens, dtype=np.bool_),
    )


async def ours(buffer: RedisBuffer, fence: common_pb2.Fence, work: Work) -> float:
    """Seconds of the whole life of a round's trajectories."""
    started = time.perf_counter()
    await buffer.open_groups(fence, work.groups)
    while claims := await buffer.claim(fence, "engine", limit=CLAIM, lease_s=60, iteration=work.iteration, max_spans=0):
        ids = [claim.trajectory.trajectory_id for claim in claims]
        tokens = len(work.segments[0].token_ids)
        last = SEGMENTS - 1
        for part in range(last):
            await buffer.flush(fence, "engine", [Update(one, part * tokens, work.segments[part]) for one in ids])
        ends = [
            Update(one, last * tokens, work.segments[last], TrajectoryState.FINISHED, common_pb2.FINISH_REASON_STOP)
            for one in ids
        ]
        await buffer.flush(fence, "engine", ends)
    while finished := await buffer.claim_finished(fence, limit=CLAIM, wait_s=0):
        await buffer.score(fence, [Scored(one.trajectory.trajectory_id, (work.component,)) for one in finished])
    for batch in work.batches:
        await buffer.record_batch(fence, batch)
    return time.perf_counter() - started


def raw(client: "redis.Redis", work: Work, run: str, *, steps: bool = False) -> float:
    """Seconds to write and read the same bytes; with steps, states too."""
    groups = [group.group_id for group in work.groups]
    ids = [trajectory_id(group, sample) for group in groups for sample in range(SAMPLES)]
    started = time.perf_counter()
    _pipelined(
        client, [("SET", f"{run}p:{group}", prompt) for group, prompt in zip(groups, work.raw_prompts, strict=True)]
    )
    for start in range(0, len(ids), CLAIM):
        chunk = ids[start : start + CLAIM]
        _pipelined(client, [("GET", f"{run}p:{group}") for group in dict.fromkeys(one[:-5] for one in chunk)])
        _pipelined(client, [("HSET", f"{run}t:{one}", "state", "leased") for one in chunk if steps])
        for segment in work.raw_segments:
            commands = [("RPUSH", f"{run}s:{one}", segment) for one in chunk]
            commands += [("HSET", f"{run}t:{one}", "state", "finished") for one in chunk if steps]
            _pipelined(client, commands)
    for start in range(0, len(ids), CLAIM):
        chunk = ids[start : start + CLAIM]
        _pipelined(client, [("LRANGE", f"{run}s:{one}", 0, -1) for one in chunk])
        commands = [("SET", f"{run}c:{one}", work.raw_components) for one in chunk]
        commands += [("HSET", f"{run}t:{one}", "state", "scored") for one in chunk if steps]
        _pipelined(client, commands)
    _pipelined(client, [("SET", f"{run}b:{number}", batch) for number, batch in enumerate(work.raw_batches)])
    _pipelined(client, [("HSET", f"{run}g:{group}", "state", "consumed") for group in groups if steps])
    return time.perf_counter() - started


def _pipelined(client: "redis.Redis", commands: Sequence[tuple[str | int | bytes, ...]]) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        pipeline.execute()


@dataclass
class Turn:
    """What one side's round took: wall, and processor time of client and server together, in seconds."""

    wall_s: float
    cpu_s: float


class Meter:
    """Processor time of this process and of the server."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client

    def read(self) -> float:
        """Seconds so far."""
        used = self._client.info("cpu")
        return time.process_time() + float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


async def measure(arguments: argparse.Namespace, url: str) -> dict[str, object]:
    """The sides in turns; the first round warms up and does not count."""
    client = redis.Redis.from_url(url)
    client.config_set("auto-aof-rewrite-percentage", 0)  # a rewrite takes a core from whose turn it happens to be
    meter, buffer = Meter(client), await connect(url, "bench")
    fence = await buffer.acquire_epoch()
    turns: dict[str, list[Turn]] = {"ours": [], "raw": [], "steps": []}
    for number in range(arguments.rounds + 1):
        work = Work(arguments.groups, arguments.tokens, next(_versions))
        for side in list(turns) if number % 2 else reversed(list(turns)):
            gc.collect()  # so that no side pays for the other's garbage
            before = meter.read()
            if side == "ours":
                wall_s = await ours(buffer, fence, work)
            else:
                wall_s = raw(client, work, f"{side}{number}:", steps=side == "steps")
            turns[side].append(Turn(wall_s, meter.read() - before))
    await buffer.close()
    client.close()
    counted = {side: found[1:] for side, found in turns.items()}
    return summary(counted, work.num_trajectories) | {
        "rounds": arguments.rounds,
        "trajectories_a_round": work.num_trajectories,
        "tokens_a_trajectory": SEGMENTS * arguments.tokens,
        "append_fsync": arguments.append_fsync,
        "machine": machine(),
    }


def summary(turns: dict[str, list[Turn]], count: int) -> dict[str, object]:
    """The figures; each ratio is the median over rounds, whose sides ran one after the other."""

    def ratios(side: str, measure: Callable[[Turn], float]) -> list[float]:
        return sorted(measure(base) / measure(own) for own, base in zip(turns["ours"], turns[side], strict=True))

    def speed(side: str) -> int:
        return round(count / statistics.median(turn.wall_s for turn in turns[side]))

    wall = ratios("raw", lambda turn: turn.wall_s)
    quarter = len(wall) // 4
    return {
        "name": "buffer",
        "ours": speed("ours"),
        "baseline": speed("raw"),
        "ratio": round(statistics.median(wall), 3),
        "ratio_quartiles": [round(wall[quarter], 3), round(wall[-1 - quarter], 3)],
        "ratio_cpu": round(statistics.median(ratios("raw", lambda turn: turn.cpu_s)), 3),
        "ratio_plain_steps": round(statistics.median(ratios("steps", lambda turn: turn.wall_s)), 3),
        "cpu_us": {
            side: round(1e6 * statistics.median(turn.cpu_s for turn in found) / count, 1)
            for side, found in turns.items()
        },
        "unit": "trajectories/s",
        "target": 0.7,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=128, help="groups of 16 trajectories in a round")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a segment; a trajectory has two")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--append-fsync", choices=("always", "everysec"), default=BufferConfig().append_fsync)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder) / "buffer", append_fsync=arguments.append_fsync)
        url = server.start()
        try:
            print(json.dumps(asyncio.run(measure(arguments, url))))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
