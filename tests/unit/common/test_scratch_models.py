"""Models made from nothing load elsewhere, are reproducible, and refuse impossible shapes."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from crescendo.common.config.schema import ScratchModelConfig
from crescendo.common.errors import ConfigError
from crescendo.common.models import write_scratch_model
from crescendo.common.tokenizer import Tokenizer

VOCABULARY = "0123456789>=?#.abcdefghijklmnopqrstuvwxyz$"
SHAPES = {
    "qwen3": ScratchModelConfig(vocabulary=VOCABULARY, num_kv_heads=1),
    "qwen2": ScratchModelConfig(architecture="qwen2", vocabulary=VOCABULARY),
    "llama": ScratchModelConfig(architecture="llama", vocabulary=VOCABULARY, num_kv_heads=3, tie_embeddings=False),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_loads_every_weight_and_the_same_tokenizer(tmp_path: Path, name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_scratch_model(tmp_path, SHAPES[name], seed=3)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_folder(tmp_path)
    text = "3a1b2?a1=4b2=6#6$"
    assert ours.encode(text) == theirs(text)["input_ids"] == [VOCABULARY.index(character) for character in text]
    assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text), skip_special_tokens=True) == text[:-1]
    assert len(theirs) == ours.vocab_size == len(VOCABULARY)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.eos_token_ids[0], ours.pad_token_id) == (41, 14)
    with torch.no_grad():
        logits = model(torch.tensor([ours.encode(text)])).logits
    assert logits.shape == (1, len(text), len(VOCABULARY))
    # A fresh model is finite and sure of nothing.
    assert float(logits.softmax(-1).max()) < 0.9


def test_the_seed_decides_every_weight(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_scratch_model(tmp_path / folder, SHAPES["qwen3"], seed)
    same, again, other = (load_file(tmp_path / folder / "model.safetensors") for folder in "abc")
    assert all(np.array_equal(same[name], again[name]) for name in same)
    assert not np.array_equal(same["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_initial_spread_is_the_documented_one(tmp_path: Path) -> None:
    write_scratch_model(tmp_path, SHAPES["qwen3"], 0)
    weights = load_file(tmp_path / "model.safetensors")
    width = SHAPES["qwen3"].hidden_size
    for name, expected in (
        ("model.embed_tokens.weight", width**-0.5),
        ("model.layers.0.self_attn.q_proj.weight", width**-0.5),
        ("model.layers.2.mlp.down_proj.weight", 0.5 * width**-0.5),
        ("model.layers.1.self_attn.o_proj.weight", 0.5 * width**-0.5),
    ):
        assert float(weights[name].std()) == pytest.approx(expected, rel=0.05), name


def test_a_character_outside_the_vocabulary_is_an_error(tmp_path: Path) -> None:
    write_scratch_model(tmp_path, SHAPES["qwen3"], 0)
    from crescendo.common.errors import DataError

    with pytest.raises(DataError, match="cannot encode"):
        Tokenizer.from_folder(tmp_path).encode("A")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"vocabulary": ""}, "vocabulary"),
        ({"vocabulary": "aab.$"}, "vocabulary"),
        ({"padding": "!"}, "padding"),
        ({"padding": "$"}, "padding"),
        ({"padding": "ab"}, "padding"),
        ({"num_heads": 3, "num_kv_heads": 2}, "num_heads"),
        ({"head_dim": 33}, "head_dim"),
    ],
)
def test_impossible_shapes_are_named(tmp_path: Path, change: dict[str, object], field: str) -> None:
    config = ScratchModelConfig(**({"vocabulary": VOCABULARY} | change))  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        write_scratch_model(tmp_path / "model", config, 0)
    assert caught.value.field == f"model.scratch.{field}"
    assert caught.value.fix
    assert not (tmp_path / "model").exists()


def test_generation_config_names_end_and_padding(tmp_path: Path) -> None:
    write_scratch_model(tmp_path, SHAPES["llama"], 0)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": 41, "pad_token_id": 14}
