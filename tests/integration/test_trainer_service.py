"""TrainerService over gRPC with a real Valkey and real Megatron: every call, one rank."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
import xxhash
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from crescendo.common.errors import CheckpointError, RequestError, StaleFenceError
from crescendo.common.weights import manifest_digest, stale_shm_files
from crescendo.proto.v1 import common_pb2, trainer_pb2
from tests.integration.trainer_rig import Rig, batch, running, sft_request
from tests.unit.trainer.tiny_models import write_model

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:.*tp_group is None:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, "qwen3")
    (folder / "tokenizer.json").write_text(json.dumps({"made": "up"}))
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_rig(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with running(tmp_path_factory.mktemp("trainer"), model_folder) as rig:
        yield rig
    assert stale_shm_files("test-trainer0-1") == []


@pytest_asyncio.fixture(loop_scope="module")
async def rig(shared_rig: Rig, model_folder: Path) -> Rig:
    """The shared trainer with fresh weights, version 1."""
    await shared_rig.call("AcquireDevice", trainer_pb2.TrainerAcquireDeviceRequest())
    await shared_rig.call("LoadModel", trainer_pb2.LoadModelRequest(path=str(model_folder), weight_version=1))
    return shared_rig


async def weights(rig: Rig, version: int) -> bytes:
    """All weights' digest."""
    request = trainer_pb2.PublishRequest(version=version, channel="shm")
    return (await rig.call("Publish", request)).manifest.digest.to_bytes(8, "little")


async def train(rig: Rig, made: trainer_pb2.TrainBatch, key: str = "") -> trainer_pb2.TrainResponse:
    request = trainer_pb2.TrainRequest(batch=made, idempotency_key=key)
    answer: trainer_pb2.TrainResponse = await rig.call("Train", request)
    return answer


async def test_supervised_training_learns_and_reports_each_step(rig: Rig) -> None:
    reports = await rig.sft(sft_request(80, version=2))
    assert [report.step for report in reports] == list(range(20))
    assert reports[-1].loss < 0.25 * reports[0].loss
    assert all(report.num_tokens > 0 and report.grad_norm > 0 for report in reports)
    status = await rig.call("GetStatus", trainer_pb2.GetTrainerStatusRequest())
    assert status.worker.weight_version == 2
    assert status.num_parameters == 40080


async def test_a_repeated_supervised_chunk_trains_once(rig: Rig) -> None:
    first = await rig.sft(sft_request(8, version=2, key="chunk"))
    before = await weights(rig, 2)
    assert await rig.sft(sft_request(8, version=2, key="chunk")) == first
    assert await weights(rig, 2) == before


async def test_bad_examples_are_refused_by_index(rig: Rig) -> None:
    request = sft_request(3)
    request.examples[1].response_token_ids.append(99)
    with pytest.raises(RequestError, match=r"examples\[1\].*vocabulary"):
        await rig.sft(request)


async def test_training_raises_rewarded_responses_and_counts(rig: Rig) -> None:
    groups = await rig.experience(groups=2, samples=4)
    ids = [each for group in groups for each in group.trajectory_ids]
    loaded = await rig.buffer.load_trajectories(ids)  # type: ignore[arg-type]
    sequences = [[*t.prompt_token_ids.tolist(), *t.token_ids.tolist()] for t in loaded]
    request = trainer_pb2.ScoreSequencesRequest(
        sequences=[trainer_pb2.ScoredSequence(token_ids=each) for each in sequences], temperature=1.0
    )

    async def responses() -> list[float]:
        answer = await rig.call("ScoreSequences", request)
        return [sum(score.log_probs[4:]) for score in answer.scores]

    before = await responses()
    answer = await train(rig, batch(groups, parent=1))
    gains = [after - start for after, start in zip(await responses(), before, strict=True)]
    assert all(gain > 0 for gain in gains[1::2])
    assert sum(gains[0::2]) < 0
    assert (answer.weight_version, answer.num_trajectories) == (2, 8)
    assert answer.num_tokens == sum(t.num_tokens for t in loaded)
    metrics = answer.metrics
    assert metrics["ratio_max"] == 1.0  # one mini-batch: the reference is the forward pass itself
    assert metrics["kl_to_iterate"] == 0.0
    assert metrics["log_prob_difference_max"] > 0
    assert metrics["grad_norm"] > 0


async def test_later_mini_batches_are_pulled_to_the_iterate(rig: Rig) -> None:
    answer = await train(rig, batch(await rig.experience(), parent=1, num_mini_batches=2))
    assert answer.metrics["num_mini_batches"] == 2
    assert answer.metrics["kl_to_iterate"] > 0
    assert answer.metrics["ratio_max"] > 1.0


async def test_training_is_deterministic_and_a_repeated_batch_trains_once(rig: Rig, model_folder: Path) -> None:
    groups = await rig.experience()
    made = batch(groups, parent=1, num_mini_batches=2)
    first = await train(rig, made, key="train-2")
    digest = await weights(rig, 2)
    assert await train(rig, made, key="train-2") == first
    assert await weights(rig, 2) == digest
    await rig.call("LoadModel", trainer_pb2.LoadModelRequest(path=str(model_folder), weight_version=1))
    await train(rig, made, key="train-2-again")
    assert await weights(rig, 2) == digest


async def test_a_batch_for_other_weights_is_refused(rig: Rig) -> None:
    with pytest.raises(RequestError, match="parent_version is 7; the trainer holds version 1"):
        await train(rig, batch(await rig.experience(), parent=7))


async def test_mirror_descent_forgets_the_optimizer_each_iteration(rig: Rig, tmp_path: Path) -> None:
    """k1.5 section 2.3.2: with reset, an iteration's result does not depend on the moments before it."""
    results = {}
    for name, reset in (("reset", True), ("kept", False)):
        groups = await rig.experience()
        made = [batch(groups, parent=version, reset_optimizer=reset) for version in (1, 2)]
        for each in made:
            each.reset_optimizer = reset
        await train(rig, made[0])
        saved = await rig.call("SaveCheckpoint", trainer_pb2.SaveCheckpointRequest(path=str(tmp_path / name)))
        await train(rig, made[1])
        straight = await weights(rig, 3)
        stored = load_file(tmp_path / name / "part0.safetensors")
        assert any(key.startswith("first/") for key in stored) is not reset
        state = json.loads((tmp_path / name / "trainer.json").read_text())
        assert state["optimizer_steps"] == 1
        await rig.call(
            "LoadCheckpoint",
            trainer_pb2.LoadCheckpointRequest(path=str(tmp_path / name), files=saved.files, weight_version=2),
        )
        await train(rig, made[1])
        assert await weights(rig, 3) == straight  # bit-equal resumption
        results[name] = straight
        await rig.call("LoadModel", trainer_pb2.LoadModelRequest(weight_version=1))
    assert results["reset"] != results["kept"]


async def test_a_damaged_checkpoint_changes_nothing(rig: Rig, tmp_path: Path) -> None:
    saved = await rig.call("SaveCheckpoint", trainer_pb2.SaveCheckpointRequest(path=str(tmp_path / "c")))
    before = await weights(rig, 1)
    path = tmp_path / "c" / "part0.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 4
    path.write_bytes(raw)
    request = trainer_pb2.LoadCheckpointRequest(path=str(tmp_path / "c"), files=saved.files, weight_version=1)
    with pytest.raises(CheckpointError, match="digest"):
        await rig.call("LoadCheckpoint", request)
    assert await weights(rig, 1) == before


@pytest.mark.parametrize("channel", ["shm", "disk"])
async def test_a_published_version_proves_itself(rig: Rig, channel: str, model_folder: Path) -> None:
    request = trainer_pb2.PublishRequest(
        version=1, parent=0, branch=2, iteration=3, channel=channel,
        canaries=[trainer_pb2.ScoredSequence(token_ids=[1, 2, 3, 4, 5])],
    )  # fmt: skip
    manifest = (await rig.call("Publish", request)).manifest
    path = Path(manifest.shards[0].address)
    raw = path.read_bytes()  # noqa: ASYNC240 - shared memory
    stored = load_file(model_folder / "model.safetensors")
    assert {tensor.name for tensor in manifest.tensors} == set(stored)
    for tensor in manifest.tensors:
        part = raw[tensor.offset : tensor.offset + tensor.num_bytes]
        assert part == stored[tensor.name].numpy().tobytes()
        assert tensor.digest == xxhash.xxh3_64_intdigest(part)
    assert manifest.digest == manifest_digest(manifest.tensors, [tensor.digest for tensor in manifest.tensors])
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    logits = AutoModelForCausalLM.from_pretrained(model_folder)(ids).logits
    wanted = logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    assert list(manifest.canaries[0].log_probs) == pytest.approx(wanted.tolist(), abs=1e-4)
    await rig.call("Retire", trainer_pb2.RetireRequest(below_version=2))
    assert not path.exists()  # noqa: ASYNC240


async def test_only_the_weights_in_memory_can_be_published(rig: Rig) -> None:
    with pytest.raises(RequestError, match="version is 9; the trainer holds version 1"):
        await rig.call("Publish", trainer_pb2.PublishRequest(version=9, channel="shm"))


async def test_older_fences_are_refused_and_change_nothing(rig: Rig) -> None:
    rig.fence = await rig.buffer.advance_fence(rig.fence)
    await rig.call("Retire", trainer_pb2.RetireRequest())
    old = common_pb2.Fence(epoch=rig.fence.epoch, counter=rig.fence.counter - 1)
    request = trainer_pb2.LoadModelRequest(fence=old, weight_version=5)
    with pytest.raises(StaleFenceError):
        await rig.call("LoadModel", request)
    status = await rig.call("GetStatus", trainer_pb2.GetTrainerStatusRequest())
    assert status.worker.weight_version == 1


async def test_unfit_trajectories_are_set_aside(rig: Rig) -> None:
    groups = await rig.experience(groups=2)
    long = await rig.experience(groups=1, samples=2, lengths=(300, 300))
    groups[0].trajectory_ids.append("nowhere")
    groups[0].rewards.append(1.0)
    answer = await train(rig, batch([*groups, *long], parent=1))
    reasons = {aside.trajectory_id: aside.reason for aside in answer.set_aside}
    assert "nowhere is unknown" in reasons["nowhere"]
    assert sum(reason.startswith("too long: 305") for reason in reasons.values()) == 2
    assert answer.num_trajectories == 8


async def test_masked_truncation_trains_only_what_ended(rig: Rig) -> None:
    groups = await rig.experience(groups=1, finish=common_pb2.FINISH_REASON_LENGTH)
    made = batch(groups, parent=1)
    made.truncated = "mask"
    before = await weights(rig, 1)
    answer = await train(rig, made)
    assert (answer.num_trajectories, answer.metrics["num_masked"]) == (0, 4)
    assert await weights(rig, 2) == before


async def test_an_exploding_batch_is_skipped_and_reported(rig: Rig) -> None:
    before = await weights(rig, 1)
    groups = await rig.experience()
    for group in groups:
        group.rewards[:] = [reward * 1e38 for reward in group.rewards]
    answer = await train(rig, batch(groups, parent=1))
    assert answer.metrics["skipped_steps"] == 1
    assert await weights(rig, 2) == before


async def test_the_exported_folder_loads_in_transformers(rig: Rig, tmp_path: Path, model_folder: Path) -> None:
    await rig.sft(sft_request(8, version=2))
    answer = await rig.call("ExportModel", trainer_pb2.ExportModelRequest(path=str(tmp_path / "hf"), dtype="float32"))
    names = {file.path for file in answer.files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    sequence = [3, 4, 5, 6, 7]
    scored = trainer_pb2.ScoredSequence(token_ids=sequence)
    request = trainer_pb2.ScoreSequencesRequest(sequences=[scored], temperature=1.0)
    mine = list((await rig.call("ScoreSequences", request)).scores[0].log_probs)
    logits = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")(torch.tensor([sequence])).logits
    wanted = logits.log_softmax(-1)[0, :-1].gather(1, torch.tensor(sequence)[1:, None])[:, 0]
    assert mine == pytest.approx(wanted.tolist(), abs=1e-4)


async def test_status_answers_while_training(rig: Rig) -> None:
    running_chunk = asyncio.create_task(rig.sft(sft_request(800, batch_size=8, version=2)))
    seen = set()
    while not running_chunk.done():
        status = await rig.call("GetStatus", trainer_pb2.GetTrainerStatusRequest(), timeout_s=5)
        seen.add(status.worker.state)
        await asyncio.sleep(0.02)
    assert "TrainSft" in seen
    assert len(await running_chunk) == 100


async def test_a_released_trainer_does_not_compute_until_acquired(rig: Rig) -> None:
    released = await rig.call("ReleaseDevice", trainer_pb2.TrainerReleaseDeviceRequest(method="idle"))
    assert released.device.state == common_pb2.DEVICE_STATE_RELEASED
    assert released.device.held_bytes > 0
    with pytest.raises(RequestError, match="let go of its device"):
        await rig.sft(sft_request(4))
    with pytest.raises(RequestError, match="must be one of"):
        await rig.call("ReleaseDevice", trainer_pb2.TrainerReleaseDeviceRequest(method="vanish"))
    await rig.call("AcquireDevice", trainer_pb2.TrainerAcquireDeviceRequest())
    assert len(await rig.sft(sft_request(4))) == 1
