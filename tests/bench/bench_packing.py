"""Trained tokens per second with packing and micro-batches by tokens, against padded micro-batches.

    ours       trainer/packing.py: blocks of nearly equal length, micro-batches filled up to a number of tokens
    baseline   micro-batches of a fixed number of sequences in random order, padded to their longest; as many
               sequences as fit that number of tokens at the longest length of all

The same model, loss and optimizer on the same sequences, whose lengths are those of reasoning responses: most are
short, a few reach the limit (log-normal, cut at --longest). In turns; trained tokens are the same on both sides.
The target for `ratio` is 1.5. `python -m tests.bench.bench_packing` prints one JSON line.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from crescendo.common.config.schema import ScratchModelConfig
from crescendo.common.models.scratch import write_scratch_model
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer.megatron import parallel, pipeline
from crescendo.trainer.megatron.model import PolicyModel
from crescendo.trainer.optimizer import FlatAdamW
from crescendo.trainer.packing import MicroBatch, Sample, lay_out, pack
from tests.bench.harness import Measured, median, report, take_turns

VOCABULARY = "0123456789>=?#.abcdefghijklmnopqrstuvwxyz$"
ADAMW = trainer_pb2.AdamW(beta1=0.9, beta2=0.95, epsilon=1e-8, clip_grad_norm=1.0)
PROMPT_TOKENS = 8


def long_tail(count: int, longest: int) -> list[Sample]:
    """Sequences whose median is an eighth of the longest."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(longest, np.maximum(4, rng.lognormal(np.log(longest / 8), 0.9, count))).astype(int)
    made = [rng.integers(0, 40, PROMPT_TOKENS + length).astype(np.int32) for length in lengths]
    return [Sample(tokens, first=PROMPT_TOKENS) for tokens in made]


def padded(samples: list[Sample], max_tokens: int) -> list[MicroBatch]:
    """Micro-batches of as many sequences as surely fit."""
    rows = max(1, max_tokens // max(sample.num_inputs for sample in samples))
    order = np.random.default_rng(1).permutation(len(samples)).tolist()
    lengths = [0] * len(samples)
    groups = [order[start : start + rows] for start in range(0, len(order), rows)]
    for group in groups:
        for index in group:
            lengths[index] = max(samples[each].num_inputs for each in group)
    return [lay_out(samples, lengths, [group]) for group in groups]


def step_of(model: PolicyModel, optimizer: FlatAdamW, micros: list[MicroBatch], num_tokens: int) -> Callable[[], float]:
    """Trained tokens per second of one optimizer step."""

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        pipeline.accumulate(model, micros, 1.0, lambda _, scores: -scores.log_probs.sum() / num_tokens)
        optimizer.step(ADAMW, 1e-4)
        return num_tokens / (time.perf_counter() - began)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--longest", type=int, default=384)
    parser.add_argument("--max-tokens", type=int, default=4096)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    samples = long_tail(given.sequences, given.longest)
    num_tokens = sum(sample.num_scored for sample in samples)
    at = parallel.start(rank=0, world_size=1, rendezvous="", device="cpu", timeout_s=60.0)
    with tempfile.TemporaryDirectory() as folder:
        config = ScratchModelConfig(vocabulary=VOCABULARY, max_positions=given.longest + PROMPT_TOKENS)
        write_scratch_model(Path(folder), config, seed=0)
        model = PolicyModel.from_folder(Path(folder), "float32", at)
    optimizer = FlatAdamW(model.parameters, model.kinds(), at)
    sides = {"ours": pack(samples, given.max_tokens), "padded": padded(samples, given.max_tokens)}
    found = take_turns(
        {name: step_of(model, optimizer, micros, num_tokens) for name, micros in sides.items()}, given.rounds
    )
    positions = {f"{name}_positions": sum(micro.num_tokens for micro in micros) for name, micros in sides.items()}
    details = {"trained_tokens": num_tokens, "num_parameters": model.num_parameters, **positions}
    ours, baseline = (median(found[name]) for name in sides)
    report(Measured("packing", ours, baseline, "trained tokens/s", details))
    parallel.stop()


if __name__ == "__main__":
    main()
