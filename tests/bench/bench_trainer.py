"""Trained tokens per second through TrainerService, against a bare Megatron loop on the same batches.

    ours       a Train call a batch: gRPC, trajectories from Valkey, advantages, packing, metrics
    baseline   the same Megatron model in this process, on sequences and advantages in memory: packing, forward,
               policy-gradient loss, backward, clipping, AdamW
    stock      Megatron as it comes (its own attention, padding to the longest of a micro-batch, torch.optim)

Both at the demo's size, mirror descent, in turns: `python -m tests.bench.bench_trainer` prints one JSON line. The
target for `ratio` is 0.97. Tokens are response tokens; medians over the rounds.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from crescendo.buffer import EmbeddedServer, ExperienceBuffer, NewGroup, Scored, Update, connect
from crescendo.common.config.schema import ScratchModelConfig
from crescendo.common.models.scratch import write_scratch_model
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.service import ServiceSpec
from crescendo.common.types import GroupId, Segment, TrajectoryState
from crescendo.proto.v1 import common_pb2, trainer_pb2, trainer_pb2_grpc

VOCABULARY = "0123456789>=?#.abcdefghijklmnopqrstuvwxyz$"
GROUPS, SAMPLES = 16, 16
MAX_TOKENS = 4096
RATE = 1e-4
ADAMW = trainer_pb2.AdamW(beta1=0.9, beta2=0.95, epsilon=1e-8, clip_grad_norm=1.0)
TIMEOUT_S = 120.0

Groups = list[trainer_pb2.TrainGroup]


async def fill(buffer: ExperienceBuffer, fence: common_pb2.Fence, rng: np.random.Generator) -> Groups:
    """A batch of scored groups of the demo's lengths: a prompt of n terms, up to 4n + 3 response tokens."""
    groups = []
    for draw in range(GROUPS):
        terms = int(rng.integers(3, 24))
        name = GroupId(f"g{draw}")
        prompt = common_pb2.Prompt(prompt_id=name, token_ids=rng.integers(0, 41, 2 + 2 * terms).tolist())
        await buffer.open_groups(fence, [NewGroup(name, prompt, 0, 1, "s", SAMPLES)])
        claims = await buffer.claim(fence, "w", limit=SAMPLES, lease_s=60, iteration=1, max_spans=3)
        ids = [claim.trajectory.trajectory_id for claim in claims]
        counts = rng.integers(3, 4 * terms + 4, SAMPLES)
        updates = [
            Update(each, 0, _segment(rng, int(count)), TrajectoryState.FINISHED, common_pb2.FINISH_REASON_STOP)
            for each, count in zip(ids, counts, strict=True)
        ]
        await buffer.flush(fence, "w", updates)
        await buffer.claim_finished(fence, limit=SAMPLES, wait_s=1.0)
        component = common_pb2.RewardComponent(name="answer", raw=1.0, weight=1.0)
        await buffer.score(fence, [Scored(each, (component,)) for each in ids])
        # Of the demo's groups about 40 % agree in their reward and train nothing.
        rewards = [float(i % 3 == 0 and draw % 5 < 3) for i in range(SAMPLES)]
        groups.append(trainer_pb2.TrainGroup(group_id=name, trajectory_ids=ids, rewards=rewards))
    return groups


def _segment(rng: np.random.Generator, count: int) -> Segment:
    return Segment(
        weight_version=1,
        iteration=1,
        stage="s",
        branch=0,
        token_ids=rng.integers(0, 41, count).astype(np.int32),
        log_probs=np.full(count, -3.7, dtype=np.float32),
        loss_mask=np.ones(count, dtype=np.bool_),
    )


def batch_of(groups: Groups, parent: int) -> trainer_pb2.TrainBatch:
    """The batch as the controller would record it."""
    return trainer_pb2.TrainBatch(
        parent_version=parent,
        new_version=parent + 1,
        on_policy_version=1,
        groups=groups,
        algorithm=trainer_pb2.Algorithm(name="mirror_descent", parameters={"tau": 1.0}),
        learning_rate=trainer_pb2.LearningRate(peak=RATE, schedule="constant"),
        optimizer=ADAMW,
        num_mini_batches=1,
        max_tokens_per_micro_batch=MAX_TOKENS,
        reset_optimizer=True,
        truncated="mask",
        importance_cap=2.0,
        old_segments="train",
        temperature=1.0,
    )


class Ours:
    """A trainer service in a process of its own."""

    def __init__(self, spec: ServiceSpec) -> None:
        self._spec = spec
        self._version = 1
        self._process: asyncio.subprocess.Process | None = None
        self._client: Client[trainer_pb2_grpc.TrainerServiceStub] | None = None

    async def start(self) -> None:
        """Starts it and loads the model."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.bench_trainer", "--serve", self._spec.to_json(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), timeout=TIMEOUT_S)
        self._client = Client(Endpoint(line.decode().strip(), self._spec.token), trainer_pb2_grpc.TrainerServiceStub)
        request = trainer_pb2.LoadModelRequest(fence=self.fence, path=self._spec.model_path, weight_version=1)
        await self._client.call(self._client.stub.LoadModel, request, timeout_s=TIMEOUT_S)

    @property
    def fence(self) -> common_pb2.Fence:
        return common_pb2.Fence(epoch=1)

    async def step(self, groups: Groups) -> tuple[float, int]:
        """One Train call: its seconds as the caller sees them, and the tokens trained."""
        assert self._client is not None
        request = trainer_pb2.TrainRequest(fence=self.fence, batch=batch_of(groups, self._version))
        began = time.perf_counter()
        answer = await self._client.call(self._client.stub.Train, request, timeout_s=TIMEOUT_S)
        seconds = time.perf_counter() - began
        self._version = answer.weight_version
        return seconds, int(answer.num_tokens)

    async def stop(self) -> None:
        """Ends the process, if it was started."""
        if self._client is not None:
            await self._client.close()
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.wait_for(self._process.wait(), timeout=TIMEOUT_S)


async def serve(spec: ServiceSpec) -> None:
    """The child process: serves until its standard input ends."""
    from crescendo.trainer.service import start

    service = await start(spec)
    print(service.address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await service.stop(1.0)


def bare_loop(model_folder: Path, threads: int, experiences: list[Any]) -> Callable[[], int]:
    """One step of the bare loop on the model that the service trains; returns its tokens."""
    import torch

    from crescendo.trainer.megatron import parallel
    from crescendo.trainer.megatron.model import PolicyModel
    from crescendo.trainer.optimizer import FlatAdamW
    from crescendo.trainer.packing import pack

    torch.set_num_threads(threads)
    at = parallel.start(rank=0, world_size=1, rendezvous="", tensor_parallel=1, device="cpu", timeout_s=TIMEOUT_S)
    model = PolicyModel.from_folder(model_folder, "float32", at)
    optimizer = FlatAdamW(model.parameters, model.kinds(), at)
    samples = [each.sample for each in experiences]
    advantages = np.array([each.advantage for each in experiences], dtype=np.float32)
    num_tokens = sum(each.num_trained for each in experiences)

    def step() -> int:
        optimizer.zero_grad()
        for micro in pack(samples, MAX_TOKENS):
            advantage = torch.from_numpy(advantages[micro.samples][micro.sample])
            loss = -(model.scores(micro, 1.0).log_probs * advantage).sum() / num_tokens
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(ADAMW, RATE)
        return num_tokens

    return step


def stock_loop(model_folder: Path, experiences: list[Any]) -> Callable[[], int]:
    """Megatron as it comes: its local spec, padded micro-batches of 64 sorted by length, torch.optim.AdamW."""
    import torch
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from crescendo.trainer.megatron.architectures.qwen3 import QWEN3
    from crescendo.trainer.megatron.model import megatron_config
    from crescendo.trainer.megatron.parallel import Layout

    shape = QWEN3.read(json.loads((model_folder / "config.json").read_text()))
    at = Layout(0, 1, torch.device("cpu"))
    config = dataclasses.replace(megatron_config(shape, torch.float32, at, "none"), use_te_activation_func=False)
    model: Any = GPTModel(
        config,
        get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm"),
        vocab_size=shape.vocab_size,
        max_sequence_length=shape.max_positions,
        share_embeddings_and_output_weights=True,
        position_embedding_type="rope",
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    ordered = sorted(experiences, key=lambda each: each.sample.num_inputs)
    batches = [_padded(ordered[i : i + 64]) for i in range(0, len(ordered), 64)]
    num_tokens = sum(each.num_trained for each in experiences)

    def step() -> int:
        optimizer.zero_grad()
        for ids, weight in batches:
            length = ids.shape[1] - 1
            mask = ~torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            positions = torch.arange(length)[None].expand(len(ids), -1)
            (model(ids[:, :-1], positions, mask, labels=ids[:, 1:]) * weight).sum().div(num_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return num_tokens

    return step


def _padded(experiences: list[Any]) -> tuple[Any, Any]:
    import torch

    longest = max(each.sample.num_inputs for each in experiences) + 1
    ids = torch.zeros(len(experiences), longest, dtype=torch.long)
    weight = torch.zeros(len(experiences), longest - 1)
    for row, each in enumerate(experiences):
        tokens = each.sample.token_ids
        ids[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        weight[row, each.sample.first - 1 : len(tokens) - 1] = each.advantage
    return ids, weight


async def measure(rounds: int, threads: int) -> dict[str, Any]:
    """All sides in turns."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = ScratchModelConfig(vocabulary=VOCABULARY, max_positions=160)
        write_scratch_model(root / "model", config, 0)
        server = EmbeddedServer(root / "buffer")
        server.start()
        spec = ServiceSpec(
            role="trainer", worker_id="trainer-0", run_folder=folder, run_id=f"bench-{os.getpid()}", token="bench",
            buffer_url=server.url, threads=threads, model_path=str(root / "model"),
        )  # fmt: skip
        buffer = await connect(server.url, spec.run_id)
        ours = Ours(spec)
        try:
            groups = await fill(buffer, await buffer.acquire_epoch(), np.random.default_rng(0))
            experiences = await _experiences(buffer, groups)
            await ours.start()
            loops = {"baseline": bare_loop(root / "model", threads, experiences)}
            loops["stock"] = stock_loop(root / "model", experiences)
            return await _in_turns(ours, loops, groups, rounds)
        finally:
            await ours.stop()
            await buffer.close()
            server.stop()


async def _experiences(buffer: ExperienceBuffer, groups: Groups) -> list[Any]:
    from crescendo.trainer.experience import Limits, load, prepare

    ids = [each for group in groups for each in group.trajectory_ids]
    found, reasons = await load(buffer, ids)
    limits = Limits(max_positions=160, vocab_size=len(VOCABULARY))
    return prepare(batch_of(groups, 1), found, reasons, limits, normalize_std=False).experiences


async def _in_turns(ours: Ours, loops: dict[str, Callable[[], int]], groups: Groups, rounds: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"ours": [], **{name: [] for name in loops}}
    for number in range(-2, rounds):  # two rounds to warm up
        seconds, tokens = await ours.step(groups)
        row = {"ours": tokens / seconds}
        for name, step in loops.items():
            began = time.perf_counter()
            done = await asyncio.to_thread(step)
            row[name] = done / (time.perf_counter() - began)
        if number >= 0:
            for name, rate in row.items():
                rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    # Of neighbours in time: the machine's other work hits both alike.
    pairs = [mine / theirs for mine, theirs in zip(rates["ours"], rates["baseline"], strict=True)]
    stock = [mine / theirs for mine, theirs in zip(rates["ours"], rates["stock"], strict=True)]
    return {
        "name": "trainer",
        "ours": round(medians["ours"], 1),
        "baseline": round(medians["baseline"], 1),
        "ratio": round(statistics.median(pairs), 3),
        "unit": "tokens/s",
        "stock": round(medians["stock"], 1),
        "stock_ratio": round(statistics.median(stock), 3),
        "rounds": rounds,
    }


def main(arguments: list[str] | None = None) -> None:
    """Prints the JSON line, or serves when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--serve", metavar="SPEC", default="")
    options = parser.parse_args(arguments)
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    if options.serve:
        asyncio.run(serve(ServiceSpec.from_json(options.serve)))
        return
    print(json.dumps(asyncio.run(measure(options.rounds, options.threads))))


if __name__ == "__main__":
    main()
