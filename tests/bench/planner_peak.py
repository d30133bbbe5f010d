"""Measures the peak of tensor memory of real training steps on CPU: allocations as PyTorch's profiler accounts them.

Used by bench_planner.py and a test; a model is made with random weights and RL-shaped steps are run on it. One rank
alone runs in this process; two ranks are two of `python -m tests.bench.planner_peak RANK CASES_JSON`, which print what
each measured. The planned figure is that of the rank that needs most.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crescendo.common.planner import Shape
from crescendo.common.planner import memory as formulas
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer import packing
from crescendo.trainer.megatron import parallel, pipeline
from crescendo.trainer.megatron.model import PolicyModel
from crescendo.trainer.megatron.parallel import Layout
from crescendo.trainer.optimizer import FlatAdamW
from crescendo.trainer.packing import MicroBatch, Sample
from tests.integration.valkey_server import free_port

ROOT = Path(__file__).parents[2]
PROMPT_TOKENS = 16
RANK_DEADLINE_S = 400.0

# Three sizes shaped like Qwen2.5: grouped queries, biases, a feed-forward of about four widths, a wide vocabulary.
SHAPES: Mapping[str, dict[str, Any]] = {
    "small": {"hidden_size": 128, "layers": 4, "heads": 4, "kv": 2, "ffn": 512, "vocabulary": 2000},
    "medium": {"hidden_size": 256, "layers": 6, "heads": 8, "kv": 2, "ffn": 1024, "vocabulary": 4000},
    "large": {"hidden_size": 384, "layers": 8, "heads": 6, "kv": 2, "ffn": 1536, "vocabulary": 8000},
}
# A mixture shaped like Qwen3-30B-A3B: small experts, norms of heads.
MIXTURE = {**SHAPES["medium"], "ffn": 384, "experts": 8, "chosen": 2}
LENGTHS = (512, 1024, 2048)


@dataclass(frozen=True)
class Case:
    """One measurement. layout: of parallel.start, without data parallelism; micro_batches: of a step, on each rank."""

    name: str
    size: Mapping[str, Any]
    tokens: int
    dtype: str = "float32"
    layout: Mapping[str, int] = field(default_factory=dict)
    recompute: str = "none"
    distributed: bool = False
    micro_batches: int = 1


def write_folder(folder: Path, size: Mapping[str, Any]) -> Path:
    """A random Qwen2, or Qwen3 mixture, by transformers itself."""
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3MoeConfig

    common: dict[str, Any] = {
        "hidden_size": size["hidden_size"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "num_key_value_heads": size["kv"],
        "intermediate_size": size["ffn"],
        "vocab_size": size["vocabulary"],
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    if "experts" in size:
        common |= {"num_experts": size["experts"], "num_experts_per_tok": size["chosen"]}
        common |= {"moe_intermediate_size": size["ffn"], "head_dim": size["hidden_size"] // size["heads"]}
        config: Any = Qwen3MoeConfig(**common, norm_topk_prob=True)
    else:
        config = Qwen2Config(**common)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


class Step:
    """One optimizer step of micro-batches of one sequence each, on a model in memory."""

    def __init__(
        self, folder: Path, at: Layout, dtype: str, recompute: str = "none", distributed: bool = False
    ) -> None:
        self.model = PolicyModel.from_folder(folder, dtype, at, recompute)
        self.optimizer = FlatAdamW(self.model.parameters, self.model.kinds(), at, distributed=distributed)

    def run(self, length: int, micro_batches: int) -> None:
        """Each sequence has `length` tokens; ranks that differ in data get their own."""
        rng = np.random.default_rng(self.model.at.data_rank)
        samples = [
            Sample(rng.integers(0, self.model.shape.vocab_size, length).astype(np.int32), first=PROMPT_TOKENS)
            for _ in range(micro_batches)
        ]
        micros: list[MicroBatch] = packing.pack(samples, length, self.model.length_multiple)
        self.optimizer.zero_grad()
        pipeline.accumulate(self.model, micros, 1.0, lambda _, scores: scores.log_probs.mean())
        self.optimizer.step(trainer_pb2.AdamW(beta1=0.9, beta2=0.95, epsilon=1e-8, clip_grad_norm=1.0), 1e-4)

    def static_bytes(self) -> int:
        """Weights, gradients and moments."""
        unique = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in self.optimizer.buffers}
        return sum(unique.values())

    def peak_bytes(self, length: int, micro_batches: int = 1) -> int:
        """Static memory, and the most that a step had allocated besides at one time."""
        self.run(length, micro_batches)  # first steps make tables and workspaces
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self.run(length, micro_batches)
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        live = peak = 0
        for event in sorted(events, key=lambda each: each.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        return self.static_bytes() + peak


def measure(case: Case, folder: Path, at: Layout) -> int:
    """This rank's peak, in bytes."""
    step = Step(folder, at, case.dtype, case.recompute, case.distributed)
    return step.peak_bytes(case.tokens, case.micro_batches)


def planned_bytes(case: Case, folder: Path, world_size: int) -> list[int]:
    """What the planner says for the same step, of a rank of each pipeline stage."""
    shape = Shape.of_config(json.loads((folder / "config.json").read_text()))
    sizes = dict(case.layout)
    apart = sizes.get("tensor_parallel", 1) * sizes.get("pipeline_parallel", 1) * sizes.get("context_parallel", 1)
    return [
        formulas.resident(training) + formulas.peak(training)
        for stage in range(sizes.get("pipeline_parallel", 1))
        for training in [
            formulas.Training(
                shape,
                case.dtype,
                case.tokens - 1,
                case.tokens - PROMPT_TOKENS,
                **sizes,
                data_parallel=world_size // apart,
                stage=stage,
                micro_batches=case.micro_batches,
                recompute=case.recompute,
                distributed=case.distributed,
            )
        ]
    ]


def alone(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """Planned and measured peaks of cases on one rank."""
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for case in cases:
            folder = _folder(Path(root), case)
            at = parallel.start(rank=0, world_size=1, rendezvous="", device="cpu", timeout_s=60)
            measured = measure(case, folder, at)
            parallel.stop()
            rows.append(_row(case, [measured], planned_bytes(case, folder, 1)))
    return rows


def together(cases: list[Case]) -> list[dict[str, Any]]:
    """Planned and measured peaks of cases on two ranks, by the rank that needs most."""
    with tempfile.TemporaryDirectory() as root:
        folders = [_folder(Path(root), case) for case in cases]
        given = zip(cases, folders, strict=True)
        jobs = json.dumps([{**asdict(case), "folder": str(folder), "port": free_port()} for case, folder in given])
        script = [sys.executable, "-m", "tests.bench.planner_peak"]
        environment = {**os.environ, "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen([*script, str(rank), jobs], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for rank in (0, 1)
        ]
        try:
            printed = [rank.communicate(timeout=RANK_DEADLINE_S)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        measured = [json.loads(text.strip().splitlines()[-1]) for text in printed]
        pairs = zip(cases, folders, zip(*measured, strict=True), strict=True)
        return [_row(case, list(peaks), planned_bytes(case, folder, 2)) for case, folder, peaks in pairs]


def _folder(root: Path, case: Case) -> Path:
    folder = root / "-".join(f"{key}{value}" for key, value in case.size.items())
    return folder if folder.exists() else write_folder(folder, case.size)


def _row(case: Case, measured: list[int], planned: list[int]) -> dict[str, Any]:
    return {
        "case": case.name,
        "tokens": case.tokens,
        "dtype": case.dtype,
        "measured": max(measured),
        "planned": max(planned),
        "ratio": max(planned) / max(measured),
        "ranks": {"measured": measured, "planned": planned},
    }


def main() -> None:
    """One of two ranks: runs the cases in order and prints its peaks."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rank, jobs = int(sys.argv[1]), json.loads(sys.argv[2])
    peaks = []
    for job in jobs:
        folder, port = Path(job.pop("folder")), job.pop("port")
        case = Case(**job)
        at = parallel.start(
            rank=rank, world_size=2, rendezvous=f"127.0.0.1:{port}", device="cpu", timeout_s=60.0, **case.layout
        )
        try:
            peaks.append(measure(case, folder, at))
        finally:
            parallel.stop()
    print(json.dumps(peaks), flush=True)


if __name__ == "__main__":
    main()
