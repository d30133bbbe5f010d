"""Trajectories per second through the whole ledger, against a raw redis-py pipeline that moves the same bytes.

`make bench BENCH=buffer` prints one JSON object. Ours: open, claim, two flushes (append, finish), claim
finished, score, record (which consumes), each with its script, packing and unpacking. Baseline: the same
prompts, segments, components and batches, packed beforehand, written and read back as raw bytes by plain SET,
GET, RPUSH and LRANGE in pipelines of the same size, without states, leases, fences or counters. Both sides take
turns on one embedded server. The target for `ratio` is 0.7. `ratio_plain_steps` compares with the baseline plus
one plain HSET for each change of state (claim, append, finish, score, consume), still without any guarantee.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import redis

from crescendo.buffer import EmbeddedServer, NewGroup, RedisBuffer, Scored, Update, connect
from crescendo.common.config.schema import BufferConfig
from crescendo.common.types import Segment, TrajectoryState, group_id, trajectory_id
from crescendo.proto.v1 import common_pb2, reward_pb2, trainer_pb2

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

    def batches(self) -> list[trainer_pb2.TrainBatch]:
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
    for batch in work.batches():
        await buffer.record_batch(fence, batch)
    return time.perf_counter() - started


def raw(client: "redis.Redis", work: Work, run: str, *, steps: bool = False) -> float:
    """Seconds to write and read the same bytes; with steps, states too."""
    prompts = [group.prompt.SerializeToString() for group in work.groups]
    segments = [segment.to_proto().SerializeToString() for segment in work.segments]
    components = reward_pb2.ScoreResult(item_id="x" * 21, components=[work.component]).SerializeToString()
    batches = [batch.SerializeToString() for batch in work.batches()]
    groups = [group.group_id for group in work.groups]
    ids = [trajectory_id(group, sample) for group in groups for sample in range(SAMPLES)]
    started = time.perf_counter()
    _pipelined(client, [("SET", f"{run}p:{group}", prompt) for group, prompt in zip(groups, prompts, strict=True)])
    for start in range(0, len(ids), CLAIM):
        chunk = ids[start : start + CLAIM]
        _pipelined(client, [("GET", f"{run}p:{group}") for group in dict.fromkeys(one[:-5] for one in chunk)])
        _pipelined(client, [("HSET", f"{run}t:{one}", "state", "leased") for one in chunk if steps])
        for segment in segments:
            commands = [("RPUSH", f"{run}s:{one}", segment) for one in chunk]
            commands += [("HSET", f"{run}t:{one}", "state", "finished") for one in chunk if steps]
            _pipelined(client, commands)
    for start in range(0, len(ids), CLAIM):
        chunk = ids[start : start + CLAIM]
        _pipelined(client, [("LRANGE", f"{run}s:{one}", 0, -1) for one in chunk])
        commands = [("SET", f"{run}c:{one}", components) for one in chunk]
        commands += [("HSET", f"{run}t:{one}", "state", "scored") for one in chunk if steps]
        _pipelined(client, commands)
    _pipelined(client, [("SET", f"{run}b:{number}", batch) for number, batch in enumerate(batches)])
    _pipelined(client, [("HSET", f"{run}g:{group}", "state", "consumed") for group in groups if steps])
    return time.perf_counter() - started


def _pipelined(client: "redis.Redis", commands: Sequence[tuple[str | int | bytes, ...]]) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        pipeline.execute()


async def measure(arguments: argparse.Namespace, url: str) -> dict[str, object]:
    """Both sides in turns; the first round of each warms up and does not count."""
    client = redis.Redis.from_url(url)
    buffer = await connect(url, "bench")
    fence = await buffer.acquire_epoch()
    ours_s: list[float] = []
    raw_s: list[float] = []
    steps_s: list[float] = []
    for turn in range(arguments.rounds + 1):
        work = Work(arguments.groups, arguments.tokens, next(_versions))
        if turn % 2:
            raw_s.append(raw(client, work, f"raw{turn}:"))
            ours_s.append(await ours(buffer, fence, work))
        else:
            ours_s.append(await ours(buffer, fence, work))
            raw_s.append(raw(client, work, f"raw{turn}:"))
        steps_s.append(raw(client, work, f"steps{turn}:", steps=True))
    await buffer.close()
    client.close()
    plain = [steps / own for own, steps in zip(ours_s[1:], steps_s[1:], strict=True)]
    ratios = [baseline / own for own, baseline in zip(ours_s[1:], raw_s[1:], strict=True)]
    count = work.num_trajectories
    return {
        "name": "buffer",
        "ours": round(count / statistics.median(ours_s[1:])),
        "baseline": round(count / statistics.median(raw_s[1:])),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_plain_steps": round(statistics.median(plain), 3),
        "unit": "trajectories/s",
        "target": 0.7,
        "rounds": arguments.rounds,
        "trajectories_a_round": count,
        "tokens_a_trajectory": SEGMENTS * arguments.tokens,
        "append_fsync": arguments.append_fsync,
        "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=128, help="groups of 16 trajectories in a round")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a segment; a trajectory has two")
    parser.add_argument("--rounds", type=int, default=7)
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
