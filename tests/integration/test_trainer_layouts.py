"""Every way to divide a model over two ranks trains like one rank, and reads the others' checkpoints bit by bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from crescendo.trainer.optimizer import PARTS
from crescendo.trainer.pieces import PieceFiles
from tests.integration.trainer_layouts import alone, together
from tests.unit.trainer.tiny_models import write_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*tp_group is None:DeprecationWarning")]

LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor": {"layout": {"tensor_parallel": 2}},
    "pipeline": {"layout": {"pipeline_parallel": 2}},
    "context": {"layout": {"context_parallel": 2}},
    "expert": {"layout": {"expert_parallel": 2}},
    "distributed": {"layout": {"data_parallel": 2}, "distributed": True},
    "context-distributed": {"layout": {"context_parallel": 2}, "distributed": True},
    "expert-recomputed": {"layout": {"expert_parallel": 2}, "distributed": True, "recompute": "full"},
    "pipeline-recomputed": {"layout": {"pipeline_parallel": 2}, "recompute": "full"},
}
# llama: an odd vocabulary, untied; qwen3: tied embeddings, which two stages share, and norms of heads.
CASES = [
    ("llama", "tensor"),
    ("llama", "context-distributed"),
    ("llama", "pipeline"),
    ("qwen3", "tensor"),
    ("qwen3", "pipeline-recomputed"),
    ("qwen3", "distributed"),
    ("qwen3-moe", "expert"),
    ("qwen3-moe", "expert-recomputed"),
    ("qwen3-moe", "pipeline"),
    ("qwen3-moe", "context"),
]
# Each loads what the one before it saved.
CHAIN = ["one", "tensor", "pipeline", "distributed", "one-again"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outcome of every case, of one rank alone, and of the chain."""
    root = tmp_path_factory.mktemp("layouts")

    def job(name: str, out: str, **more: Any) -> dict[str, Any]:
        return {"model": str(root / name), "out": str(root / out), **more}

    for name in {name for name, _ in CASES}:
        write_model(root / name, name)
        alone(job(name, f"{name}-one"))
    jobs = [job(name, f"{name}-{layout}", **LAYOUTS[layout]) for name, layout in CASES]
    saved = root / "qwen3-one" / "checkpoint"
    for link in CHAIN[1:-1]:
        jobs.append(job("qwen3", f"chain-{link}", load=str(saved), **LAYOUTS[link]))
        saved = root / f"chain-{link}" / "checkpoint"
    together(jobs, 2)
    alone(job("qwen3", "chain-one-again", load=str(saved)))
    return root


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_two_ranks_train_like_one(name: str, layout: str, folder: Path) -> None:
    one, two = folder / f"{name}-one", folder / f"{name}-{layout}"
    assert json.loads((two / "numbers.json").read_text()) == pytest.approx(
        json.loads((one / "numbers.json").read_text()), abs=1e-4
    )
    before, wanted, found = (
        load_file(each / "model.safetensors") for each in (folder / name, one / "exported", two / "exported")
    )
    assert found.keys() == wanted.keys() == before.keys()
    assert all(not torch.equal(tensor, before[key]) for key, tensor in wanted.items())
    for key, tensor in wanted.items():
        assert torch.allclose(found[key], tensor, atol=1e-5), key


@pytest.mark.parametrize("link", CHAIN[1:])
def test_a_checkpoint_goes_from_layout_to_layout_bit_by_bit(link: str, folder: Path) -> None:
    first = whole_tensors(folder / "qwen3-one" / "checkpoint")
    again = whole_tensors(folder / f"chain-{link}" / "checkpoint")
    assert {key.split("/")[0] for key in first} == set(PARTS)
    assert first.keys() == again.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in first.items())


def whole_tensors(root: Path) -> dict[str, torch.Tensor]:
    files = PieceFiles(root, [path.name for path in root.glob("*.safetensors")])
    return {key: tensor[:] for key, tensor in files.tensors.items()}


def test_transformers_loads_what_two_expert_ranks_exported(folder: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder / "qwen3-moe-expert" / "exported", output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.num_experts == 4
