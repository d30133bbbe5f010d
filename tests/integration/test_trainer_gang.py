"""Gangs of two processes over gloo: divided training equals one rank's; a lost rank is noticed."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from crescendo.common.errors import CrescendoError, RequestError, WorkerLostError
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer import tensor_files
from tests.integration.trainer_rig import Rig, batch, running, sft_request
from tests.unit.trainer.tiny_models import write_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*tp_group is None:DeprecationWarning")]

LAYOUTS: dict[str, dict[str, int]] = {
    "one": {},
    "tensor": {"tensor_parallel": 2},
    "pipeline": {"pipeline_parallel": 2},
    "data": {"data_parallel": 2, "distributed_optimizer": 1, "async_checkpoint": 1},
}


async def life(rig: Rig, target: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Trains by every method; returns all losses and norms, and the final weights.

    AdamW with a large epsilon steps in proportion to the gradient, so that rounding stays rounding.
    """
    supervised = sft_request(24, version=2)
    supervised.optimizer.epsilon = 1.0
    supervised.learning_rate.peak = 0.5
    numbers = [value for report in await rig.sft(supervised) for value in (report.loss, report.grad_norm)]
    grpo = trainer_pb2.Algorithm(name="grpo", parameters={"clip_low": 0.2, "clip_high": 0.28})
    for version, algorithm in ((2, None), (3, grpo)):
        made = batch(await rig.experience(groups=4, version=version), parent=version, num_mini_batches=2)
        made.optimizer.epsilon = 1.0
        made.learning_rate.peak = 0.2
        if algorithm is not None:
            made.algorithm.CopyFrom(algorithm)
        answer = await rig.call("Train", trainer_pb2.TrainRequest(batch=made))
        metrics = answer.metrics
        numbers += [
            metrics[key] for key in ("loss", "grad_norm", "kl_to_iterate", "log_prob_difference_max", "entropy")
        ]
        numbers += [answer.num_tokens, answer.num_trajectories]
    saved = await rig.call("SaveCheckpoint", trainer_pb2.SaveCheckpointRequest(path=str(target / "c")))
    await rig.call("LoadModel", trainer_pb2.LoadModelRequest(weight_version=9))
    request = trainer_pb2.LoadCheckpointRequest(path=str(target / "c"), files=saved.files, weight_version=4)
    await rig.call("LoadCheckpoint", request)
    await rig.call("ExportModel", trainer_pb2.ExportModelRequest(path=str(target / "hf"), dtype="float32"))
    published = trainer_pb2.PublishRequest(version=4, channel="shm")
    published.canaries.add().token_ids.extend([1, 2, 3, 4])
    numbers += (await rig.call("Publish", published)).manifest.canaries[0].log_probs
    return numbers, load_file(target / "hf" / "model.safetensors")


async def test_two_ranks_train_like_one(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "qwen3")
    outcomes = {}
    for layout, options in LAYOUTS.items():
        folder = tmp_path / layout
        folder.mkdir()
        async with running(folder, tmp_path / "model", **options) as rig:
            outcomes[layout] = await life(rig, folder)
    numbers, weights = outcomes.pop("one")
    for layout, (other_numbers, other_weights) in outcomes.items():
        assert other_numbers == pytest.approx(numbers, abs=1e-4), layout
        assert other_weights.keys() == weights.keys()
        for key, tensor in weights.items():
            assert torch.allclose(other_weights[key], tensor, atol=1e-5), (layout, key)


async def test_a_refused_request_leaves_the_gang_whole_and_a_lost_rank_breaks_it(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "qwen2")
    async with running(tmp_path, tmp_path / "model", data_parallel=2) as rig:
        bad = sft_request(2)
        bad.examples[0].response_token_ids.append(1000)
        with pytest.raises(RequestError, match="vocabulary"):
            await rig.sft(bad)
        assert len(await rig.sft(sft_request(8))) == 2
        rig.followers[0].kill()
        await rig.followers[0].wait()
        began = time.monotonic()
        with pytest.raises(CrescendoError):
            await rig.sft(sft_request(8))
        with pytest.raises(WorkerLostError, match="broken"):
            await rig.sft(sft_request(8))
        assert time.monotonic() - began < 20
        status = await asyncio.wait_for(rig.call("GetStatus", trainer_pb2.GetTrainerStatusRequest()), timeout=5)
        assert status.worker.state == "broken"


async def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    write = tensor_files.write_tensors

    def slowly(*args: Any) -> trainer_pb2.CheckpointFile:
        assert go.wait(30)
        return write(*args)

    write_model(tmp_path / "model", "qwen3")
    async with running(tmp_path, tmp_path / "model", async_checkpoint=1) as rig:
        await rig.sft(sft_request(4, version=2))
        monkeypatch.setattr(tensor_files, "write_tensors", slowly)
        request = trainer_pb2.SaveCheckpointRequest(path=str(tmp_path / "c"), idempotency_key="c")
        begin = trainer_pb2.SaveCheckpointRequest(path=request.path, idempotency_key="c", only_begin=True)
        assert not (await rig.call("SaveCheckpoint", begin)).files
        saves = [asyncio.create_task(rig.call("SaveCheckpoint", request)) for _ in range(2)]
        sequence = trainer_pb2.ScoreSequencesRequest()
        sequence.sequences.add().token_ids.extend([1, 2, 3, 4, 5])
        before = await rig.call("ScoreSequences", sequence)
        await rig.sft(sft_request(8, version=3))
        assert await rig.call("ScoreSequences", sequence) != before
        assert not any(save.done() for save in saves)
        go.set()
        first, second = await asyncio.gather(*saves)
        assert first == second
        load = trainer_pb2.LoadCheckpointRequest(path=request.path, files=first.files)
        assert (await rig.call("LoadCheckpoint", load)).weight_version == 2
        assert await rig.call("ScoreSequences", sequence) == before
