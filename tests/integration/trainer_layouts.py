"""Training in a layout, without services: `alone` in this process, `together` in some others.

A job trains a model by supervised and reinforcement steps, or loads a checkpoint, and leaves what came of it in a
folder: numbers.json, the exported model, a checkpoint.
"""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer import checkpoint, export, sft, step
from crescendo.trainer.algorithms import objective
from crescendo.trainer.experience import Experience, Prepared
from crescendo.trainer.megatron import parallel
from crescendo.trainer.megatron.model import PolicyModel
from crescendo.trainer.megatron.parallel import Layout
from crescendo.trainer.optimizer import FlatAdamW
from crescendo.trainer.packing import Sample
from crescendo.trainer.publish import score
from tests.integration.trainer_rig import batch, sft_request

ROOT = Path(__file__).parents[2]
VOCAB = 61


def experiences() -> list[Experience]:
    rng = np.random.default_rng(5)
    made = []
    for _ in range(9):
        prompt, length = 4, int(rng.integers(3, 30))
        made.append(
            Experience(
                sample=Sample(rng.integers(0, VOCAB, prompt + length).astype(np.int32), first=prompt),
                behaviour=np.full(length, -4.0, dtype=np.float32),
                trained=np.ones(length, dtype=np.bool_),
                old=np.zeros(length, dtype=np.bool_),
                advantage=float(rng.normal()),
            )
        )
    return made


def train(model: PolicyModel, optimizer: FlatAdamW) -> list[float]:
    """AdamW with a large epsilon steps in proportion to the gradient, so that rounding stays rounding."""
    request = sft_request(12)
    request.optimizer.epsilon = 1.0
    request.learning_rate.peak = 0.5
    samples = sft.samples_of(request, model.shape.max_positions, VOCAB)
    numbers = [
        x for report in sft.train(model, optimizer, samples, request, 64) for x in (report.loss, report.grad_norm)
    ]
    made = batch([], parent=1, num_mini_batches=2)
    made.algorithm.CopyFrom(trainer_pb2.Algorithm(name="grpo", parameters={"clip_low": 0.2, "clip_high": 0.28}))
    made.optimizer.epsilon = 1.0
    made.learning_rate.peak = 0.2
    outcome = step.train(model, optimizer, Prepared(experiences()), made, objective(made.algorithm), 64)
    keys = ("loss", "grad_norm", "kl_to_iterate", "log_prob_difference_max", "entropy")
    numbers += [outcome.metrics[key] for key in keys]
    return numbers + [x for row in score(model, [[1, 2, 3, 4], [5] * 30], 1.0, 64) for x in row]


def work(job: dict[str, Any], at: Layout) -> None:
    """Does one job on this rank."""
    out = Path(job["out"])
    model = PolicyModel.from_folder(Path(job["model"]), job.get("dtype", "float32"), at, job.get("recompute", "none"))
    optimizer = FlatAdamW(model.parameters, model.kinds(), at, distributed=job.get("distributed", False))
    numbers: list[float] = []
    if "load" in job:
        root = Path(job["load"])
        files = [trainer_pb2.CheckpointFile(path=path.name) for path in sorted(root.iterdir())]
        checkpoint.load(root, files, model, optimizer)
    else:
        numbers = train(model, optimizer)
    state = checkpoint.TrainerState(1, "sft", optimizer.step_count, True, model.architecture.name)
    checkpoint.prepare(out / "checkpoint", model, optimizer, state, copy=False).write()
    export.export(model, Path(job["model"]), out / "exported", "float32")
    if at.speaks:
        (out / "numbers.json").write_text(json.dumps(numbers))


def alone(job: dict[str, Any]) -> None:
    """Does one job on one rank, in this process."""
    at: Layout = parallel.start(rank=0, world_size=1, rendezvous="", device="cpu", timeout_s=30.0)
    try:
        work(job, at)
    finally:
        parallel.stop()


def together(jobs: list[dict[str, Any]], num_ranks: int) -> None:
    """Processes that do the jobs one after the other."""
    given = json.dumps([{**job, "port": port} for job, port in zip(jobs, _free_ports(len(jobs)), strict=True)])
    script = [sys.executable, "-m", "tests.integration.trainer_layouts", str(num_ranks), given]
    environment = {**os.environ, "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*script, str(rank)], env=environment, cwd=ROOT) for rank in range(num_ranks)]
    try:
        assert [rank.wait(timeout=240) for rank in ranks] == [0] * num_ranks
    finally:
        for rank in ranks:
            rank.kill()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def main() -> None:
    torch.set_num_threads(1)
    num_ranks, jobs, rank = int(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    for job in jobs:
        at = parallel.start(
            rank=rank,
            world_size=num_ranks,
            rendezvous=f"127.0.0.1:{job['port']}",
            device="cpu",
            timeout_s=60.0,
            **{name: size for name, size in job["layout"].items() if name != "data_parallel"},
        )
        try:
            work(job, at)
        finally:
            parallel.stop()


if __name__ == "__main__":
    main()
