"""What needs a GPU, each test skipped with its reason without one; and the same code run dry, on cores, everywhere.

On a bare machine: PYTHONPATH=src python3 -m pytest -c /dev/null --rootdir . tests/gpu
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu import figures
from tests.gpu.bare_model import QWEN_1_5B, TINY, Decoder, Step

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.mark.parametrize("name", sorted(figures.FIGURES))
def test_figures_run_dry(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main(["--dry", "--only", name]) == 0
    assert f'"gpu.{name}"' in capsys.readouterr().out


def test_the_bare_model_learns_and_has_the_parameters_of_qwen_1_5b() -> None:
    step = Step(TINY, torch.device("cpu"))
    losses = [step.run(64) for _ in range(2)]
    assert all(0 < loss < 20 for loss in losses)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Decoder(QWEN_1_5B).parameters())
    assert count == 1_543_714_304


@needs_gpu
def test_a_step_of_1_5b_at_24576_tokens_fits_one_gpu() -> None:
    step = Step(QWEN_1_5B, torch.device("cuda:0"))
    assert 0 < step.run(24_576) < 20
    assert torch.cuda.max_memory_allocated() < torch.cuda.get_device_properties(0).total_memory


@needs_gpu
def test_what_is_offloaded_is_free_by_nvml_and_comes_back() -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    pytest.importorskip("crescendo.trainer.device", reason="a package of the trainer is missing", exc_type=ImportError)
    from crescendo.common.device_memory import device_memory
    from crescendo.common.leases import Proof, Reading, Verdict
    from crescendo.trainer.device import Device

    step = Step(QWEN_1_5B, torch.device("cuda:0"))
    step.run(1024)
    device, buffers = Device(torch.device("cuda:0")), step.buffers()
    num_bytes = sum(buffer.numel() * buffer.element_size() for buffer in buffers)
    sums = [buffer.double().sum().item() for buffer in buffers]
    before = device_memory().free_bytes
    device.release("offload", buffers)
    after = device_memory()
    proof = Proof(before + int(0.9 * num_bytes), deadline_s=0.0)
    assert proof.observe(Reading(0.0, 0.0, after.free_bytes, after.total_bytes)) is Verdict.PROVEN
    device.acquire()
    assert [buffer.double().sum().item() for buffer in buffers] == sums


@needs_gpu
@pytest.mark.parametrize("figure", ["sync", "nccl"])
@pytest.mark.parametrize("allocator", ["", "expandable_segments:True"])
def test_two_processes_share_weights_by_cuda_ipc(allocator: str, figure: str) -> None:
    """Also with expandable segments, which CUDA IPC cannot share: the transfer buffer is taken outside of them."""
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": allocator}
    command = [sys.executable, "-m", "tests.gpu.figures", "--only", figure]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == figures.MISSING:
        pytest.skip(done.stdout[-1000:])
    assert done.returncode == 0, done.stderr[-3000:]


@needs_gpu
def test_the_main_job_runs_with_the_reference_engine(tmp_path: Path) -> None:
    pytest.importorskip("megatron.core", reason="Megatron-Core is not installed")
    pytest.importorskip("ray", reason="Ray is not installed")
    root = Path(__file__).parents[2]
    command = [
        str(Path(sys.executable).parent / "crescendo"), "run", "recipes/quickstart/recipe.yaml", "--plain",
        *(f"--set={each}" for each in (
            f"run.folder={tmp_path}", "rollout.engine=reference", "placement.device=gpu", "steps.0.sft.steps=5",
            "steps.1.rl.stages.0.max_iterations=2", "steps.1.rl.stages.0.on_max_iterations=stop",
        )),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
