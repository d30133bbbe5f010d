"""Measures the peak of tensor memory of real training steps on CPU: allocations as PyTorch's profiler accounts them.

Used by bench_planner.py and a test; a model is made with random weights and one RL-shaped step is run on it.
"""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crescendo.common.planner import Shape
from crescendo.common.planner import memory as formulas
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer import packing
from crescendo.trainer.megatron import parallel
from crescendo.trainer.megatron.model import PolicyModel
from crescendo.trainer.optimizer import FlatAdamW
from crescendo.trainer.packing import Sample

PROMPT_TOKENS = 16

# Three sizes shaped like Qwen2.5: grouped queries, biases, a feed-forward of about four widths, a wide vocabulary.
SHAPES: Mapping[str, dict[str, Any]] = {
    "small": {"hidden_size": 128, "layers": 4, "heads": 4, "kv": 2, "ffn": 512, "vocabulary": 2000},
    "medium": {"hidden_size": 256, "layers": 6, "heads": 8, "kv": 2, "ffn": 1024, "vocabulary": 4000},
    "large": {"hidden_size": 384, "layers": 8, "heads": 6, "kv": 2, "ffn": 1536, "vocabulary": 8000},
}
LENGTHS = (512, 1024, 2048)


def write_folder(folder: Path, size: Mapping[str, Any]) -> Path:
    """A random Qwen2 by transformers itself."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        hidden_size=size["hidden_size"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv"],
        intermediate_size=size["ffn"],
        vocab_size=size["vocabulary"],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


class Step:
    """One optimizer step of a sequence of `length` tokens, on a model in memory."""

    def __init__(self, folder: Path, dtype: str) -> None:
        warnings.simplefilter("ignore")
        at = parallel.start(rank=0, world_size=1, rendezvous="", tensor_parallel=1, device="cpu", timeout_s=60)
        self.model = PolicyModel.from_folder(folder, dtype, at)
        self.optimizer = FlatAdamW(self.model.parameters, self.model.kinds(), self.model.at)
        self.dtype = dtype

    def run(self, length: int) -> None:
        tokens = np.random.default_rng(0).integers(0, self.model.shape.vocab_size, length).astype(np.int32)
        self.optimizer.zero_grad()
        for micro in packing.pack([Sample(tokens, first=PROMPT_TOKENS)], length):
            self.model.scores(micro, 1.0).log_probs.mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step(trainer_pb2.AdamW(beta1=0.9, beta2=0.95, epsilon=1e-8, clip_grad_norm=1.0), 1e-4)

    def static_bytes(self) -> int:
        """Weights, gradients and moments."""
        unique = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in self.optimizer.buffers}
        return sum(unique.values())

    def peak_bytes(self, length: int) -> int:
        """Static memory, and the most that a step had allocated besides at one time."""
        self.run(length)  # first steps make tables and workspaces
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self.run(length)
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        live = peak = 0
        for event in sorted(events, key=lambda each: each.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        return self.static_bytes() + peak


def planned_bytes(step: Step, length: int) -> int:
    """What the planner says for the same step."""
    shape = Shape.of_config(step.model.config)
    training = formulas.Training(shape, step.dtype, length - 1, length - PROMPT_TOKENS)
    fixed = (formulas.weights, formulas.main_weights, formulas.gradients, formulas.optimizer)
    return sum(each(training) for each in fixed) + formulas.working(training)


def compare(sizes: Mapping[str, dict[str, Any]], lengths: tuple[int, ...], dtype: str) -> list[dict[str, Any]]:
    """Planned and measured peaks of each size and length."""
    found = []
    for name, size in sizes.items():
        with tempfile.TemporaryDirectory() as root:
            step = Step(write_folder(Path(root), size), dtype)
            for length in lengths:
                measured, planned = step.peak_bytes(length), planned_bytes(step, length)
                found.append(
                    {"model": name, "tokens": length, "measured": measured, "planned": planned,
                     "ratio": planned / measured}
                )  # fmt: skip
            parallel.stop()
    return found
