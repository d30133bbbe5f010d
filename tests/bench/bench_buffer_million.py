"""A million small trajectories through the ledger, from open to archived: steady speed, constant client memory.

`make bench BENCH=buffer_million` prints one JSON object; ARGS="--trajectories 50000" makes it smaller. Each is opened,
claimed, flushed once (which finishes it), handed out, scored, consumed, committed and trimmed as an archiver would, so
that of the server's memory only the groups' records grow, by about a KiB each. `ours` is the speed of the last tenth,
`baseline` that of the first: a command whose cost grows with what the ledger has ever held would pull the ratio down.
`slowest_script_ms` is by the server's slow log.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import redis

from crescendo.buffer import EmbeddedServer, NewGroup, RedisBuffer, Scored, Update, connect
from crescendo.buffer.scripts import script, script_names
from crescendo.common.config.schema import BufferConfig
from crescendo.common.types import Segment, TrajectoryState, group_id, trajectory_id
from crescendo.proto.v1 import common_pb2, trainer_pb2
from tests.bench.harness import Measured, progress, report

SAMPLES = 16
CLAIM = 256
GROUPS = 64  # an iteration
TOKENS = 16
COMPONENT = common_pb2.RewardComponent(name="math_answer", raw=1.0, weight=1.0)
SLOW_US = 1000


async def iterate(buffer: RedisBuffer, fence: common_pb2.Fence, archiver: int, iteration: int, part: Segment) -> None:
    """The whole life of GROUPS * SAMPLES trajectories."""
    prompt = common_pb2.Prompt(prompt_id="p", token_ids=range(8), domain="math", gold_answers=["42"])
    groups = [
        NewGroup(group_id(0, iteration, draw), prompt, 0, iteration, "8k", SAMPLES, TOKENS) for draw in range(GROUPS)
    ]
    await buffer.open_groups(fence, groups)
    while claims := await buffer.claim(fence, "engine", limit=CLAIM, lease_s=60, iteration=iteration, max_spans=0):
        ends = [
            Update(one.trajectory.trajectory_id, 0, part, TrajectoryState.FINISHED, common_pb2.FINISH_REASON_STOP)
            for one in claims
        ]
        await buffer.flush(fence, "engine", ends)
    while finished := await buffer.claim_finished(fence, limit=CLAIM, wait_s=0):
        await buffer.score(fence, [Scored(one.trajectory.trajectory_id, (COMPONENT,)) for one in finished])
    batch = trainer_pb2.TrainBatch(
        iteration=iteration,
        groups=[
            trainer_pb2.TrainGroup(
                group_id=group.group_id,
                trajectory_ids=[trajectory_id(group.group_id, sample) for sample in range(SAMPLES)],
                rewards=[1.0] * SAMPLES,
            )
            for group in groups
        ],
    )
    await buffer.record_batch(fence, batch)
    await buffer.commit(fence, 0, iteration, f"checkpoints/{iteration}")
    await buffer.trim(archiver, {group.group_id: "data/file.parquet" for group in groups})


class SlowLog:
    """The slowest script that the server saw; its log is short, so it is read often."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._names = {script(name).sha: name for name in script_names()}
        client.config_set("slowlog-log-slower-than", SLOW_US)
        client.slowlog_reset()
        self.slowest = (0, "none")

    def read(self) -> None:
        for entry in self._client.slowlog_get(128):
            words = entry["command"].decode(errors="replace").split()
            name = self._names.get(words[1], words[0]) if len(words) > 1 else words[0]
            self.slowest = max(self.slowest, (int(entry["duration"]), name))
        self._client.slowlog_reset()


async def measure(url: str, iterations: int) -> tuple[list[float], dict[str, object]]:
    """Seconds of each iteration, and what else is of interest."""
    rng = np.random.default_rng(0)
    part = Segment(
        1, 1, "8k", 0, rng.integers(0, 150_000, TOKENS).astype(np.int32), -rng.random(TOKENS).astype(np.float32),
        np.ones(TOKENS, dtype=np.bool_),
    )  # fmt: skip
    buffer = await connect(url, "bench")
    fence, archiver = await buffer.acquire_epoch(), await buffer.acquire_archiver()
    client, process = redis.Redis.from_url(url), psutil.Process()
    slow = SlowLog(client)
    seconds: list[float] = []
    grown_from = peak = 0
    for iteration in range(1, iterations + 1):
        started = time.perf_counter()
        await iterate(buffer, fence, archiver, iteration, part)
        seconds.append(time.perf_counter() - started)
        slow.read()
        if iteration == max(1, iterations // 10):
            grown_from = process.memory_info().rss
        if iteration % 100 == 0:
            peak = max(peak, client.info("memory")["used_memory"])
            progress(f"{iteration * GROUPS * SAMPLES} trajectories")
    found = {
        "client_rss_growth_mib": round((process.memory_info().rss - grown_from) / 2**20, 1),
        "client_rss_mib": round(process.memory_info().rss / 2**20, 1),
        "server_used_mib": round(max(peak, client.info("memory")["used_memory"]) / 2**20, 1),
        "slowest_script_ms": slow.slowest[0] / 1000,
        "slowest_script": slow.slowest[1],
        "consumed": (await buffer.counts())["groups.consumed"] * SAMPLES,
    }
    await buffer.close()
    client.close()
    return seconds, found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=1_000_000)
    parser.add_argument("--append-fsync", choices=("always", "everysec"), default=BufferConfig().append_fsync)
    arguments = parser.parse_args()
    each = GROUPS * SAMPLES
    iterations = max(10, -(-arguments.trajectories // each))
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder) / "buffer", append_fsync=arguments.append_fsync)
        url = server.start()
        try:
            seconds, details = asyncio.run(measure(url, iterations))
        finally:
            server.stop()
    tenth = iterations // 10
    early, late = each * tenth / sum(seconds[:tenth]), each * tenth / sum(seconds[-tenth:])
    details |= {
        "trajectories": iterations * each,
        "trajectories_per_second": round(iterations * each / sum(seconds)),
        "append_fsync": arguments.append_fsync,
    }
    report(Measured("buffer_million", late, early, "trajectories/s, last tenth over first", details))


if __name__ == "__main__":
    main()
