"""A GGUF file (llama.cpp's format, often quantized) as a Hugging Face folder that engine and trainer load.

Called by `crescendo model convert`. Weights are dequantized one tensor at a time. GGUF stores the query and key
rows of Llama models in the order of llama.cpp's rotary embedding (pairs of neighbours); Hugging Face turns
halves against each other, so those rows are put back. The tokenizer is in gguf_tokenizer.py.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from crescendo.common.errors import DataError, EnvironmentProblem
from crescendo.common.runfolder import write_atomically
from crescendo.trainer import tensor_files
from crescendo.trainer.models.gguf_tokenizer import write_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class ConversionReport:
    """What was converted. quantization: the GGUF types of the tensors and how many have them."""

    architecture: str
    name: str
    num_parameters: int
    num_tensors: int
    quantization: dict[str, int]
    dtype: str


def convert_gguf(source: Path, target: Path, *, dtype: str = "float32") -> ConversionReport:
    """Writes target as a Hugging Face folder: config, generation config, safetensors, tokenizer, chat template.

    dtype: float32 | bfloat16 | float16. Raises DataError for a file that is no GGUF or holds an architecture or
    feature without a mapping, EnvironmentProblem when the gguf package is not installed.
    """
    if dtype not in DTYPES:
        raise DataError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.", field="dtype")
    reader = _open(source)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    config = _config(fields, {tensor.name for tensor in reader.tensors}, source)
    target.mkdir(parents=True, exist_ok=True)
    names = {tensor.name: _hugging_face_name(tensor.name, source) for tensor in reader.tensors}
    layout = [(names[t.name], tuple(int(size) for size in reversed(t.shape))) for t in reader.tensors]
    tensor_files.write_tensors(
        target / "model.safetensors",
        target,
        layout,
        DTYPES[dtype],
        _tensors(reader, config),
        {"format": "pt"},
    )
    _write_json(target / "config.json", config | {"dtype": dtype})
    ends = {"eos_token_id": config["eos_token_id"], "bos_token_id": config["bos_token_id"]}
    padding = fields.get("tokenizer.ggml.padding_token_id", config["eos_token_id"])
    _write_json(target / "generation_config.json", ends | {"pad_token_id": padding})
    write_tokenizer(fields, target, max_positions=int(config["max_position_embeddings"]))
    kinds: dict[str, int] = {}
    for tensor in reader.tensors:
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
    return ConversionReport(
        architecture=str(config["model_type"]),
        name=str(fields.get("general.name", source.stem)),
        num_parameters=sum(int(np.prod(shape)) for _, shape in layout),
        num_tensors=len(layout),
        quantization=kinds,
        dtype=dtype,
    )


def _open(source: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise EnvironmentProblem(
            "reading GGUF files needs the gguf package.", fix="Install it: pip install 'crescendo-rl[convert]'."
        ) from None
    try:
        return GGUFReader(source)
    except (OSError, ValueError, IndexError) as error:
        raise DataError(
            f"{source} cannot be read as GGUF: {error}.", field="source", fix="Give a complete .gguf file."
        ) from None


def _config(fields: dict[str, Any], tensors: set[str], source: Path) -> dict[str, Any]:
    kind = str(fields.get("general.architecture", ""))
    if kind not in _CLASSES:
        raise DataError(
            f"{source} holds architecture {kind!r}; the converter knows {', '.join(sorted(_CLASSES))}.", field="source"
        )
    scaling = fields.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in tensors:
        raise DataError(f"{source} scales its rotary embedding ({scaling}); the converter does not.", field="source")
    width = int(_field(fields, f"{kind}.embedding_length", source))
    heads = int(_field(fields, f"{kind}.attention.head_count", source))
    end = int(_field(fields, "tokenizer.ggml.eos_token_id", source))
    return {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": int(_field(fields, f"{kind}.block_count", source)),
        "num_attention_heads": heads,
        "num_key_value_heads": int(fields.get(f"{kind}.attention.head_count_kv", heads)),
        "head_dim": int(fields.get(f"{kind}.attention.key_length", width // heads)),
        "intermediate_size": int(_field(fields, f"{kind}.feed_forward_length", source)),
        "vocab_size": len(_field(fields, "tokenizer.ggml.tokens", source)),
        "max_position_embeddings": int(_field(fields, f"{kind}.context_length", source)),
        # GGUF rounds to float32; six digits give the number that was meant, such as 1e-05.
        "rms_norm_eps": float(f"{_field(fields, f'{kind}.attention.layer_norm_rms_epsilon', source):.6g}"),
        "rope_theta": float(fields.get(f"{kind}.rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": int(fields.get("tokenizer.ggml.bos_token_id", end)),
        "eos_token_id": end,
    }


def _field(fields: dict[str, Any], key: str, source: Path) -> Any:
    if key not in fields:
        raise DataError(f"{source} has no metadata field {key}.", field="source")
    return fields[key]


def _hugging_face_name(name: str, source: Path) -> str:
    if name in _OUTER:
        return _OUTER[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in _LAYER:
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{parts[3]}"
    raise DataError(f"{source} holds tensor {name}, which has no place in a Hugging Face model.", field="source")


def _tensors(reader: Any, config: dict[str, Any]) -> Iterator[torch.Tensor]:
    from gguf import dequantize

    for tensor in reader.tensors:
        values: npt.NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        part = tensor.name.split(".")[-2]
        if config["model_type"] == "llama" and part in ("attn_q", "attn_k"):
            heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
            values = _unpermuted(values, int(heads))
        yield torch.from_numpy(np.array(values))


def _unpermuted(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of each head from pairs of neighbours to two halves. rows: [heads * d, ...]."""
    half = rows.shape[0] // heads // 2
    tail = rows.shape[1:]
    return rows.reshape(heads, half, 2, *tail).swapaxes(1, 2).reshape(rows.shape)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=2))
