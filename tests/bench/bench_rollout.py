"""Tokens a second through RolloutService with segments flushed to Valkey, against bare `LLM.generate`.

`make bench BENCH=rollout` prints one JSON line. Both sides run vLLM with the same settings, model, prompts and
forced lengths, log-probabilities included, each in a process of its own, in turns. Ours counts from Begin until
the buffer holds every finished trajectory. The target for `ratio` is 0.97 at SmolLM2-135M's size; the details
report the quick start's tiny model too.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crescendo.buffer import EmbeddedServer, ExperienceBuffer, NewGroup, connect
from crescendo.common.config.load import save_resolved
from crescendo.common.config.schema import Config
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import ServiceSpec
from crescendo.common.types import group_id
from crescendo.proto.v1 import common_pb2, rollout_pb2, rollout_pb2_grpc
from tests.bench import harness
from tests.bench.rollout_rig import SMOL, TINY, random_weights, write_folder
from tests.contract.engine_cases import ServiceProcess, publish, run_config

ROUND_S = 600.0


@dataclass(frozen=True)
class Load:
    """What one round generates, and the engine's settings, equal on both sides."""

    requests: int
    prompt_tokens: int
    response_tokens: int
    longest: int
    vocabulary: int
    concurrency: int
    batched_tokens: int = 4096
    block_size: int = 32
    kv_cache_gib: float = 1.0
    threads: int = 2
    poll_s: float = 0.1  # the bench's own look at the buffer, which takes from the same cores

    def prompts(self, number: int) -> list[list[int]]:
        """The prompts of a round."""
        draw = np.random.default_rng(number)
        table = draw.integers(1, self.vocabulary, (self.requests, self.prompt_tokens))
        return [[int(token) for token in row] for row in table]


SMOL_LOAD = Load(64, 64, 64, 512, 49152, 64)
QUICK_LOAD = Load(16, 32, 16, 512, 49152, 64)
TINY_LOAD = Load(256, 16, 96, 256, 43, 256, poll_s=0.02)


def baseline_process(folder: Path, load: Load) -> None:
    """Bare vLLM: answers each round number on stdin with seconds and tokens on stdout."""
    from crescendo.rollout.engine.settings import EngineSettings
    from crescendo.rollout.engine.vllm_environment import prepare_environment

    prepare_environment(EngineSettings(str(folder), load.longest, load.vocabulary, (), threads=load.threads))
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        generation_config="vllm",
        dtype="float32",
        load_format="dummy",
        enforce_eager=True,
        max_model_len=load.longest,
        max_num_seqs=load.concurrency,
        max_num_batched_tokens=load.batched_tokens,
        enable_prefix_caching=False,
        block_size=load.block_size,
        kv_cache_memory_bytes=int(load.kv_cache_gib * 2**30),
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
    )
    params = SamplingParams(
        temperature=1.0, max_tokens=load.response_tokens, ignore_eos=True, logprobs=0, detokenize=False
    )
    print("ready", flush=True)
    for line in sys.stdin:
        prompts: Any = [{"prompt_token_ids": one} for one in load.prompts(int(line))]
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        elapsed = time.perf_counter() - began
        print("made", elapsed, sum(len(one.outputs[0].token_ids) for one in outputs), flush=True)


class Baseline:
    """The bare side, seen from here."""

    def __init__(self, folder: Path, load: Load) -> None:
        command = [sys.executable, "-m", "tests.bench.bench_rollout", "--baseline", str(folder)]
        self._process = subprocess.Popen(
            [*command, "--load", json.dumps(asdict(load))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer("ready")

    def tokens_per_second(self, number: int) -> float:
        """One round."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        seconds, tokens = self._answer("made")
        return float(tokens) / float(seconds)

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _answer(self, word: str) -> list[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line.split()[1:]
        raise AssertionError(f"the bare engine ended with {self._process.wait()}")


@dataclass
class Ours:
    """The service and its buffer, seen from here."""

    load: Load
    loop: asyncio.AbstractEventLoop
    client: Client[rollout_pb2_grpc.RolloutServiceStub]
    buffer: ExperienceBuffer
    fence: common_pb2.Fence
    finished: int = 0

    def tokens_per_second(self, number: int) -> float:
        """One round."""
        return self.loop.run_until_complete(self._round(number))

    async def _round(self, number: int) -> float:
        load = self.load
        groups = [
            NewGroup(
                group_id(0, number, draw), common_pb2.Prompt(prompt_id=f"p{draw}", token_ids=one), 0, number, "a", 1
            )
            for draw, one in enumerate(load.prompts(number))
        ]
        await self.buffer.open_groups(self.fence, groups)
        begin = rollout_pb2.BeginRequest(
            fence=self.fence,
            iteration=number,
            stage="a",
            weight_version=1,
            sampling=common_pb2.Sampling(temperature=1.0, top_p=1.0),
            max_response_tokens=load.response_tokens,
            max_concurrency=load.concurrency,
            flush_tokens=Config().rollout.flush_tokens,
            flush_seconds=Config().rollout.flush_s,
            lease_seconds=Config().rollout.lease_s,
        )
        self.finished += load.requests
        began = time.perf_counter()
        await self.client.call(self.client.stub.Begin, begin, timeout_s=30)
        async with asyncio.timeout(ROUND_S):
            while True:
                if (await self.buffer.counts()).get("trajectories.finished", 0) >= self.finished:
                    break
                await asyncio.sleep(load.poll_s)
        elapsed = time.perf_counter() - began
        pause = rollout_pb2.PauseRequest(fence=self.fence, deadline_seconds=30)
        progress = (await self.client.call(self.client.stub.Pause, pause, timeout_s=40)).progress
        if progress.num_tokens != load.requests * load.response_tokens:
            raise AssertionError(f"{progress.num_tokens} tokens were generated; lengths are forced")
        return float(progress.num_tokens) / elapsed


@contextlib.contextmanager
def served(folder: Path, shape: dict[str, Any], load: Load, root: Path) -> Iterator[Ours]:
    """RolloutService over vLLM in a process of its own, a Valkey, weights admitted."""
    run = RunFolder.create(root / "run", "bench")
    config = run_config("vllm")
    config.model.source = str(folder)
    config.data.max_prompt_tokens = load.prompt_tokens
    config.steps[0].rl.stages[0].max_response_tokens = load.longest - load.prompt_tokens
    config.rollout.max_concurrency = load.concurrency
    config.rollout.max_batched_tokens = load.batched_tokens
    config.rollout.kv_cache_gib = load.kv_cache_gib
    config.rollout.block_size = load.block_size
    config.rollout.threads = load.threads
    save_resolved(config, run.config)
    server = EmbeddedServer(root / "valkey")
    spec = ServiceSpec(
        "rollout",
        "rollout-0",
        str(run.root),
        run.run_id(),
        "t",
        buffer_url=server.start(),
        model_path=str(folder),
        threads=load.threads,
        options={"dummy": "1"},
    )
    process = ServiceProcess(spec, root / "log")
    loop = asyncio.new_event_loop()

    async def prepare() -> Ours:
        client = Client(Endpoint(process.address, "t"), rollout_pb2_grpc.RolloutServiceStub)
        buffer = await connect(spec.buffer_url, spec.run_id)
        fence = await buffer.acquire_epoch()
        manifest = publish(random_weights(shape), root / "weights", 1)
        update = rollout_pb2.UpdateWeightsRequest(fence=fence, manifest=manifest)
        await client.call(client.stub.UpdateWeights, update, timeout_s=120)
        await client.call(client.stub.Admit, rollout_pb2.AdmitRequest(fence=fence, version=1), timeout_s=30)
        return Ours(load, loop, client, buffer, fence)

    made = loop.run_until_complete(prepare())
    try:
        yield made
    finally:
        loop.run_until_complete(made.client.close())
        loop.run_until_complete(made.buffer.close())
        loop.close()
        process.stop()
        server.stop()


def measure(shape: dict[str, Any], load: Load, rounds: int) -> tuple[float, float]:
    """Median tokens a second of both sides, ours first."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folder = write_folder(root / "model", shape)
        baseline = Baseline(folder, load)
        with served(folder, shape, load, root) as ours:
            numbers = {"ours": iter(range(1, 1000)), "baseline": iter(range(1, 1000))}
            sides = {
                "ours": lambda: ours.tokens_per_second(next(numbers["ours"])),
                "baseline": lambda: baseline.tokens_per_second(next(numbers["baseline"])),
            }
            found = harness.take_turns(sides, rounds)
        baseline.close()
    harness.progress(str(found))
    return harness.median(found["ours"]), harness.median(found["baseline"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few tokens, two rounds")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--baseline", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    if arguments.baseline is not None:
        baseline_process(arguments.baseline, Load(**json.loads(arguments.load)))
        return
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    tiny_ours, tiny_baseline = measure(TINY, TINY_LOAD, rounds)
    load = QUICK_LOAD if arguments.quick else SMOL_LOAD
    ours, baseline = measure(SMOL, load, rounds)
    details = {
        "load": asdict(load),
        "rounds": rounds,
        "tiny": {
            "ours": harness.rounded(tiny_ours),
            "baseline": harness.rounded(tiny_baseline),
            "ratio": harness.rounded(tiny_ours / tiny_baseline),
        },
    }
    harness.report(harness.Measured("rollout", ours, baseline, "tokens/s", details))


if __name__ == "__main__":
    main()
