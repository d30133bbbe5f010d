"""Megatron's model against transformers': logits, gradients, packing, the way of the weights, the optimizer."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from crescendo.common.errors import ConfigError, DataError
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer import export
from crescendo.trainer.megatron import log_probs, parallel
from crescendo.trainer.megatron.model import PolicyModel
from crescendo.trainer.megatron.parallel import Layout
from crescendo.trainer.optimizer import FlatAdamW
from crescendo.trainer.packing import MicroBatch, Sample, pack
from tests.unit.trainer.tiny_models import configs, write_model

pytestmark = pytest.mark.filterwarnings("ignore:.*tp_group is None:DeprecationWarning")
ADAMW = trainer_pb2.AdamW(beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, clip_grad_norm=0.5)


@pytest.fixture(scope="module")
def layout() -> Iterator[Layout]:
    yield parallel.start(rank=0, world_size=1, rendezvous="", tensor_parallel=1, device="cpu", timeout_s=30.0)
    parallel.stop()


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    lengths = ((40, 10), (38, 3), (7, 1), (90, 50), (41, 2))
    return [Sample(rng.integers(0, 61, length).astype(np.int32), first) for length, first in lengths]


def flat(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].detach().reshape(-1) for name in sorted(tensors)])


def state(optimizer: FlatAdamW, part: str) -> torch.Tensor:
    return flat(dict(optimizer.values(part)))


def reference(model: torch.nn.Module, sample: Sample) -> torch.Tensor:
    ids = torch.from_numpy(sample.token_ids.astype(np.int64))[None]
    scores = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return scores[sample.first - 1 :]


def gradients_by_stored_name(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """transformers holds a layer's experts in one tensor; folders hold each by itself."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            found[name] = gradient
            continue
        prefix, kind = name.rsplit(".", 1)
        for number, each in enumerate(gradient):
            gate, up = each.chunk(2)
            parts = {"gate_proj": gate, "up_proj": up} if kind == "gate_up_proj" else {kind: each}
            found |= {f"{prefix}.{number}.{part}.weight": value for part, value in parts.items()}
    return found


@pytest.mark.parametrize("name", configs())
def test_log_probs_equal_transformers_in_packed_micro_batches(name: str, tmp_path: Path, layout: Layout) -> None:
    hugging_face = write_model(tmp_path, name)
    model = PolicyModel.from_folder(tmp_path, "float32", layout)
    given = samples()
    for micro in pack(given, 128):
        scores = model.scores(micro, 1.0).log_probs
        for place, index in enumerate(micro.samples):
            mine = scores[torch.from_numpy(micro.sample == place)]
            assert torch.allclose(mine, reference(hugging_face, given[index]), atol=1e-4)


@pytest.mark.parametrize("name", configs())
def test_gradients_of_a_supervised_step_equal_transformers(name: str, tmp_path: Path, layout: Layout) -> None:
    hugging_face = write_model(tmp_path, name)
    model = PolicyModel.from_folder(tmp_path, "float32", layout)
    given = samples()
    total = sum(sample.num_scored for sample in given)
    for micro in pack(given, 128):
        (-model.scores(micro, 1.0).log_probs.sum() / total).backward()
    (-sum(reference(hugging_face, sample).sum() for sample in given) / total).backward()
    theirs = gradients_by_stored_name(hugging_face)
    with torch.no_grad():
        for parameter in model.parameters.values():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)  # the way of the weights is the way of the gradients
    for exported in model.export():
        wanted = theirs[exported.name]
        assert torch.allclose(exported.data.reshape(exported.shape), wanted, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", configs())
def test_import_then_export_is_bit_equal(name: str, tmp_path: Path, layout: Layout) -> None:
    write_model(tmp_path, name)
    model = PolicyModel.from_folder(tmp_path, "float32", layout)
    stored = load_file(tmp_path / "model.safetensors")
    exported = {each.name: each.data.reshape(each.shape) for each in model.export()}
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[key], stored[key]) for key in stored)
    assert dict(model.export_layout()) == {key: tuple(value.shape) for key, value in stored.items()}
    assert model.num_parameters == sum(value.numel() for value in stored.values())


def test_a_model_exported_in_several_files_loads_in_transformers(
    tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    hugging_face = write_model(tmp_path / "source", "qwen3-moe")
    monkeypatch.setattr(export, "MAX_FILE_BYTES", 40_000)
    model = PolicyModel.from_folder(tmp_path / "source", "float32", layout)
    files = export.export(model, tmp_path / "source", tmp_path / "target", "float32")
    assert sum(file.path.endswith(".safetensors") for file in files) > 2
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype=torch.float32)
    assert all(torch.equal(again.state_dict()[k], tensor) for k, tensor in hugging_face.state_dict().items())
    PolicyModel.from_folder(tmp_path / "target", "float32", layout)


def test_recomputed_activations_give_the_same_gradients(tmp_path: Path, layout: Layout) -> None:
    write_model(tmp_path, "qwen3-moe")
    gradients = []
    for recompute in ("none", "full"):
        model = PolicyModel.from_folder(tmp_path, "float32", layout, recompute)
        for micro in pack(samples(), 128):
            model.scores(micro, 1.0).log_probs.sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.parameters.items()})
    assert all(torch.equal(gradients[1][name], gradient) for name, gradient in gradients[0].items())


def test_packing_gives_what_each_sequence_alone_gives(tmp_path: Path, layout: Layout) -> None:
    write_model(tmp_path, "qwen3")
    model = PolicyModel.from_folder(tmp_path, "float32", layout)
    given = samples()

    def gradient(micro_batches: list[MicroBatch]) -> torch.Tensor:
        for parameter in model.parameters.values():
            parameter.grad = None
        for micro in micro_batches:
            model.scores(micro, 0.7).log_probs.sum().backward()
        return torch.cat([p.grad.reshape(-1) for p in model.parameters.values() if p.grad is not None])

    alone = gradient([micro for sample in given for micro in pack([sample], 128)])
    assert torch.allclose(gradient(pack(given, 400)), alone, atol=1e-3)


def test_temperature_and_entropy(tmp_path: Path, layout: Layout) -> None:
    hugging_face = write_model(tmp_path, "qwen2")
    model = PolicyModel.from_folder(tmp_path, "float32", layout)
    sample = samples()[0]
    ids = torch.from_numpy(sample.token_ids.astype(np.int64))[None]
    distribution = (hugging_face(ids).logits[0, sample.first - 1 : -1] / 0.5).log_softmax(-1)
    scores = model.scores(pack([sample], 128)[0], 0.5)
    wanted = distribution.gather(1, ids[0, sample.first :, None])[:, 0]
    assert torch.allclose(scores.log_probs, wanted, atol=1e-4)
    assert torch.allclose(scores.entropies, -(distribution.exp() * distribution).sum(-1), atol=1e-4)


def test_chunked_log_probs_equal_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(50, 8), torch.randn(30, 8), torch.randint(0, 28, (50,))
    results = []
    for limit in (1 << 20, 100):
        monkeypatch.setattr(log_probs, "MAX_LOGITS", {"cpu": limit})
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        scores, entropies = log_probs.token_log_probs(
            *leaves, targets, temperature=0.7, valid_rows=28, first_row=0, group=None
        )
        (scores * torch.linspace(-1, 1, 50)).sum().backward()
        results.append([scores, entropies, leaves[0].grad, leaves[1].grad])
    wanted = (hidden @ weight[:28].T / 0.7).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(results[0][0], wanted, atol=1e-5)
    for whole, chunked in zip(*results, strict=True):
        assert whole is not None
        assert chunked is not None
        assert torch.allclose(whole, chunked, atol=1e-5)
    assert results[0][3] is not None
    assert (results[0][3][28:] == 0).all()


def test_the_optimizer_is_adamw_with_clipping(tmp_path: Path, layout: Layout) -> None:
    write_model(tmp_path, "qwen3")
    model = PolicyModel.from_folder(tmp_path, "float32", layout)
    copies = {n: p.detach().clone().requires_grad_() for n, p in model.parameters.items()}
    matrices = [p for p in copies.values() if p.ndim > 1]
    vectors = [p for p in copies.values() if p.ndim == 1]
    theirs = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2, betas=(0.9, 0.95), eps=1e-8,
    )  # fmt: skip
    mine = FlatAdamW(model.parameters, model.kinds(), layout)
    for step in range(3):
        torch.manual_seed(step)
        mine.zero_grad()
        for name, parameter in model.parameters.items():
            gradient = torch.randn(parameter.shape)
            assert parameter.grad is not None
            parameter.grad.add_(gradient)
            copies[name].grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(list(copies.values()), 0.5)
        theirs.step()
        assert mine.step(ADAMW, 1e-2).grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert all(torch.allclose(model.parameters[name], copy, atol=1e-6) for name, copy in copies.items())


def test_reset_forgets_moments_and_a_bad_gradient_changes_nothing(tmp_path: Path, layout: Layout) -> None:
    write_model(tmp_path, "qwen3")
    model = PolicyModel.from_folder(tmp_path, "float32", layout)
    optimizer = FlatAdamW(model.parameters, model.kinds(), layout)
    optimizer.grad.fill_(1.0)
    optimizer.step(ADAMW, 1e-3)
    assert optimizer.step_count == 1
    assert state(optimizer, "first").abs().max() > 0
    optimizer.reset()
    assert optimizer.step_count == 0
    assert not state(optimizer, "first").any()
    assert not state(optimizer, "second").any()
    before = state(optimizer, "weights")
    optimizer.grad[3] = float("nan")
    assert optimizer.step(ADAMW, 1e-3).skipped
    assert torch.equal(state(optimizer, "weights"), before)
    assert optimizer.step_count == 0


def test_low_precision_weights_train_through_a_float32_copy(tmp_path: Path, layout: Layout) -> None:
    write_model(tmp_path, "qwen3")
    model = PolicyModel.from_folder(tmp_path, "bfloat16", layout)
    optimizer = FlatAdamW(model.parameters, model.kinds(), layout)
    for _ in range(3):
        optimizer.zero_grad()
        for micro in pack(samples(), 128):
            (-model.scores(micro, 1.0).log_probs.mean()).backward()
        assert not optimizer.step(ADAMW, 1e-5).skipped
    main, working = state(optimizer, "weights"), flat(model.parameters)
    assert main.dtype is torch.float32
    assert torch.equal(working, main.bfloat16())
    assert not torch.equal(working.float(), main)


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, layout: Layout) -> None:
    write_model(tmp_path, "qwen3")
    weights = load_file(tmp_path / "model.safetensors")
    lost = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="up_proj"):
        PolicyModel.from_folder(tmp_path, "float32", layout)
    save_file(weights | {"model.layers.1.mlp.up_proj.weight": lost[1:]}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="shape"):
        PolicyModel.from_folder(tmp_path, "float32", layout)


@pytest.mark.parametrize(("old", "new"), [('"silu"', '"gelu"'), ('"qwen3"', '"mamba"'), ('"default"', '"dynamic"')])
def test_a_config_without_a_mapping_is_refused(old: str, new: str, tmp_path: Path, layout: Layout) -> None:
    write_model(tmp_path, "qwen3")
    path = tmp_path / "config.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError):
        PolicyModel.from_folder(tmp_path, "float32", layout)
