"""GGUF to Hugging Face: the converted folder computes what the original does."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from crescendo.common.errors import DataError
from crescendo.trainer.models import convert_gguf
from tests.unit.trainer.tiny_models import write_model

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def llama_cpp_order(rows: np.ndarray, heads: int) -> np.ndarray:  # type: ignore[type-arg]
    """As llama.cpp's converter stores query and key rows."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path, weights: dict[str, torch.Tensor], *, architecture: str = "llama", pre: str = "gpt-2"
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_embedding_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(12)
    writer.add_feed_forward_length(80)
    writer.add_context_length(256)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    tokens = ["<end>", "a", "b", "ab", *(f"w{i}" for i in range(57))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * 60)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, tensor in weights.items():
        stem, kind = name.rsplit(".", 1)
        array = tensor.float().numpy()
        if stem in OUTER:
            writer.add_tensor(f"{OUTER[stem]}.{kind}", array)
            continue
        _, _, layer, part = stem.split(".", 3)
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            array = llama_cpp_order(array, 4 if "q_proj" in part else 2)
        writer.add_tensor(f"blk.{layer}.{NAMES[part]}.{kind}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", "llama")
    return tmp_path / "tiny.gguf"


def test_converted_weights_and_logits_are_the_originals(source: Path, tmp_path: Path) -> None:
    weights = load_file(tmp_path / "model" / "model.safetensors")
    write_gguf(source, weights)
    report = convert_gguf(source, tmp_path / "out")
    assert (report.architecture, report.num_tensors, report.quantization) == ("llama", len(weights), {"F32": 21})
    converted = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(converted[name], tensor) for name, tensor in weights.items())
    ids = torch.arange(1, 20)[None]
    logits = [AutoModelForCausalLM.from_pretrained(tmp_path / each)(ids).logits for each in ("model", "out")]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)


def test_tokenizer_and_chat_template_come_along(source: Path, tmp_path: Path) -> None:
    write_gguf(source, load_file(tmp_path / "model" / "model.safetensors"))
    convert_gguf(source, tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("abb<end>").ids == [3, 2, 0]
    assert tokenizer.decode([3, 2]) == "abb"
    assert "messages[0]" in (tmp_path / "out" / "tokenizer_config.json").read_text()


@pytest.mark.parametrize("changes", [{"architecture": "mamba"}, {"pre": "klingon"}])
def test_what_has_no_mapping_is_refused(source: Path, tmp_path: Path, changes: dict[str, str]) -> None:
    write_gguf(source, load_file(tmp_path / "model" / "model.safetensors"), **changes)
    with pytest.raises(DataError):
        convert_gguf(source, tmp_path / "out")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not at all")
    with pytest.raises(DataError, match=r"x\.gguf"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out")
