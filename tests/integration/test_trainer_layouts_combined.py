"""Two ways to divide a model at once, over four ranks: log-probabilities and gradients are those of one rank."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.integration.trainer_layouts import alone, together
from tests.unit.trainer.tiny_models import write_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*tp_group is None:DeprecationWarning")]

# As (model, layout, other settings); what is left of the four ranks is data parallelism.
CASES: dict[str, tuple[str, dict[str, int], dict[str, Any]]] = {
    "tensor-pipeline": ("qwen3", {"tensor_parallel": 2, "pipeline_parallel": 2}, {"recompute": "full"}),
    "tensor-data": ("qwen3", {"tensor_parallel": 2}, {"distributed": True}),
    "pipeline-expert": ("qwen3-moe", {"pipeline_parallel": 2, "expert_parallel": 2}, {}),
    "tensor-context": ("llama", {"tensor_parallel": 2, "context_parallel": 2}, {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outcome of every case, and of one rank alone."""
    root = tmp_path_factory.mktemp("combined")
    for name in {name for name, _, _ in CASES.values()}:
        write_model(root / name, name)
        alone({"model": str(root / name), "out": str(root / f"{name}-one")})
    jobs = [
        {"model": str(root / name), "out": str(root / case), "layout": layout, **more}
        for case, (name, layout, more) in CASES.items()
    ]
    together(jobs, 4)
    return root


@pytest.mark.parametrize("case", CASES)
def test_four_ranks_train_like_one(case: str, folder: Path) -> None:
    """The steps' losses, gradient norms and log-probabilities to 1e-4; what the steps changed, to 1e-3 of it."""
    name = CASES[case][0]
    one, four = folder / f"{name}-one", folder / case
    wanted_numbers, found_numbers = (json.loads((each / "numbers.json").read_text()) for each in (one, four))
    assert found_numbers == pytest.approx(wanted_numbers, abs=1e-4)
    before, wanted, found = (
        load_file(each / "model.safetensors") for each in (folder / name, one / "exported", four / "exported")
    )
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        change = (tensor - before[key]).abs().max()
        assert change > 0, key
        assert (found[key] - tensor).abs().max() <= max(1e-3 * change, 1e-6), key
