"""4,096 trajectories of 24K tokens: what they take of the server's memory, and of time.

`make bench BENCH=buffer_long` prints one JSON object; ARGS="--trajectories 256" makes it smaller. Tokens arrive in
flushes of 1,024, as engines send them. `ours` is the speed of flushing in tokens/s, `baseline` that of RPUSH of the
same bytes in raw pipelines on the same server, in turns of an eighth each; the rest is reported beside it.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import redis

from crescendo.buffer import EmbeddedServer, NewGroup, RedisBuffer, Scored, Update, connect
from crescendo.buffer.segments import pack_segment
from crescendo.common.config.schema import BufferConfig
from crescendo.common.types import Segment, TrajectoryId, TrajectoryState, group_id, trajectory_id
from crescendo.proto.v1 import common_pb2, trainer_pb2
from tests.bench.harness import Measured, progress, report

SAMPLES = 16
FLUSH_TOKENS = 1024
TURNS = 8
COMPONENT = common_pb2.RewardComponent(name="math_answer", raw=1.0, weight=1.0)


def new_segment() -> Segment:
    rng = np.random.default_rng(0)
    return Segment(
        weight_version=1,
        iteration=1,
        stage="24k",
        branch=0,
        token_ids=rng.integers(0, 150_000, FLUSH_TOKENS).astype(np.int32),
        log_probs=-rng.random(FLUSH_TOKENS).astype(np.float32),
        loss_mask=np.ones(FLUSH_TOKENS, dtype=np.bool_),
    )


async def flush_turn(
    buffer: RedisBuffer, fence: common_pb2.Fence, ids: list[TrajectoryId], tokens: int, part: Segment
) -> float:
    """Seconds to flush the whole of some trajectories."""
    started = time.perf_counter()
    for offset in range(0, tokens, FLUSH_TOKENS):
        last = offset + FLUSH_TOKENS >= tokens
        state = TrajectoryState.FINISHED if last else TrajectoryState.LEASED
        reason = common_pb2.FINISH_REASON_LENGTH if last else common_pb2.FINISH_REASON_UNSPECIFIED
        await buffer.flush(fence, "engine", [Update(one, offset, part, state, reason) for one in ids])
    return time.perf_counter() - started


def raw_turn(client: "redis.Redis", name: str, count: int, tokens: int, packed: bytes) -> float:
    """Seconds to push the same bytes, which are taken away again."""
    started = time.perf_counter()
    for _ in range(0, tokens, FLUSH_TOKENS):
        with client.pipeline(transaction=False) as pipeline:
            for number in range(count):
                pipeline.rpush(f"{name}:{number}", packed)
            pipeline.execute()
    seconds = time.perf_counter() - started
    for number in range(count):
        client.unlink(f"{name}:{number}")
    return seconds


async def measure(url: str, count: int, tokens: int) -> tuple[list[float], list[float], dict[str, object]]:
    """Tokens a second of both sides, turn by turn, and what else is of interest."""
    part = new_segment()
    packed = pack_segment(part)
    buffer = await connect(url, "bench")
    fence = await buffer.acquire_epoch()
    client = redis.Redis.from_url(url)
    empty = client.info("memory")["used_memory"]
    prompt = common_pb2.Prompt(prompt_id="p", token_ids=range(512), domain="math")
    groups = [
        NewGroup(group_id(0, 1, draw), prompt, 0, 1, "24k", SAMPLES, tokens) for draw in range(-(-count // SAMPLES))
    ]
    await buffer.open_groups(fence, groups)
    ours, raw, claimed = [], [], 0
    each = -(-count // TURNS)
    while claims := await buffer.claim(fence, "engine", limit=each, lease_s=600, iteration=1, max_spans=0):
        ids = [claim.trajectory.trajectory_id for claim in claims]
        claimed += len(ids)
        ours.append(len(ids) * tokens / await flush_turn(buffer, fence, ids, tokens, part))
        raw.append(len(ids) * tokens / raw_turn(client, f"raw{claimed}", len(ids), tokens, packed))
        progress(f"{claimed} trajectories of {tokens} tokens flushed")
    used = client.info("memory")["used_memory"] - empty
    started = time.perf_counter()
    while finished := await buffer.claim_finished(fence, limit=64, wait_s=0):
        await buffer.score(fence, [Scored(one.trajectory.trajectory_id, (COMPONENT,)) for one in finished])
    scored = time.perf_counter()
    members = [[trajectory_id(group.group_id, sample) for sample in range(SAMPLES)] for group in groups]
    batch = trainer_pb2.TrainBatch(
        iteration=1,
        groups=[
            trainer_pb2.TrainGroup(group_id=group.group_id, trajectory_ids=ids, rewards=[1.0] * SAMPLES)
            for group, ids in zip(groups, members, strict=True)
        ],
    )
    await buffer.record_batch(fence, batch)
    recorded = time.perf_counter()
    read = 0
    for start in range(0, len(members), 4):
        wanted = [one for ids in members[start : start + 4] for one in ids]
        read += sum(one.num_tokens for one in await buffer.load_trajectories(wanted))
    loaded = time.perf_counter()
    details: dict[str, object] = {
        "trajectories": claimed,
        "tokens_each": tokens,
        "server_gib": round(used / 2**30, 3),
        "bytes_per_token": round(used / (claimed * tokens), 2),
        "flush_seconds": round(sum(claimed / len(ours) * tokens / speed for speed in ours), 2),
        "score_seconds": round(scored - started, 2),
        "record_seconds": round(recorded - scored, 3),
        "load_seconds": round(loaded - recorded, 2),
        "load_tokens_per_second": round(read / (loaded - recorded)),
    }
    await buffer.close()
    client.close()
    return ours, raw, details


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=24 * 1024)
    parser.add_argument("--append-fsync", choices=("always", "everysec"), default=BufferConfig().append_fsync)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder) / "buffer", append_fsync=arguments.append_fsync)
        url = server.start()
        try:
            ours, raw, details = asyncio.run(measure(url, arguments.trajectories, arguments.tokens))
        finally:
            server.stop()
    details["append_fsync"] = arguments.append_fsync
    report(Measured("buffer_long", statistics.median(ours), statistics.median(raw), "tokens/s flushed", details))


if __name__ == "__main__":
    main()
