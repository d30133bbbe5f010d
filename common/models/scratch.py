"""Makes a small model from nothing: a Hugging Face folder with random weights and a character tokenizer.

Called once at the start of a run whose model.source is `scratch`; engine, trainer and transformers then load the
folder like any other model. No torch: numpy and safetensors.

Shapes: V vocabulary, D hidden size, F feed-forward size, H query heads, K key/value heads, A head width.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from crescendo.common.config.schema import ScratchModelConfig
from crescendo.common.errors import ConfigError
from crescendo.common.runfolder import write_atomically
from crescendo.common.types import FloatArray

# Every matrix keeps the variance of its input, and the two that write into the residual stream get half of that (a
# fixed form of GPT-2's scaling). Embeddings of the same size as the rest, not the usual 0.02: at so small a width the
# heads that copy from the prompt then form in 80 steps instead of 250, or never (measured on clock_sum).
_RESIDUAL_SCALE = 0.5
_RMS_NORM_EPSILON = 1e-6

_CLASS_NAMES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def write_scratch_model(folder: Path, config: ScratchModelConfig, seed: int) -> None:
    """Writes config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json.

    The same seed gives the same bytes. Raises ConfigError when the vocabulary or the shape is impossible.
    """
    _check(config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _model_config(config))
    _write_json(folder / "generation_config.json", {"eos_token_id": _eos_id(config), "pad_token_id": _pad_id(config)})
    write_atomically(folder / "tokenizer.json", _tokenizer(config).to_str(pretty=True))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": config.vocabulary[-1],
            "pad_token": config.padding,
            # Never produced; without it transformers' Qwen2 class adds a token beyond the model's vocabulary.
            "unk_token": config.padding,
            "model_max_length": config.max_positions,
            "clean_up_tokenization_spaces": False,
        },
    )


def _check(config: ScratchModelConfig) -> None:
    characters = config.vocabulary
    repeated = sorted({character for character in characters if characters.count(character) > 1})
    if len(characters) < 2 or repeated:
        raise ConfigError(
            f"model.scratch.vocabulary is {characters!r}; it must hold at least two characters, each once"
            + (f" (repeated: {' '.join(repeated)})." if repeated else "."),
            field="model.scratch.vocabulary",
            fix="List each character once, the end of sequence last.",
        )
    if len(config.padding) != 1 or config.padding not in characters[:-1]:
        raise ConfigError(
            f"model.scratch.padding is {config.padding!r}; it must be one character of the vocabulary, not the last.",
            field="model.scratch.padding",
            fix="Add a padding character to model.scratch.vocabulary and name it here.",
        )
    if config.num_heads % config.num_kv_heads:
        raise ConfigError(
            f"model.scratch.num_heads is {config.num_heads}; it must be a multiple of num_kv_heads "
            f"({config.num_kv_heads}).",
            field="model.scratch.num_heads",
            fix="Choose num_kv_heads that divides num_heads.",
        )
    if config.head_dim % 2:
        raise ConfigError(
            f"model.scratch.head_dim is {config.head_dim}; rotary embeddings need an even width.",
            field="model.scratch.head_dim",
            fix="Choose an even head_dim.",
        )


def _eos_id(config: ScratchModelConfig) -> int:
    return len(config.vocabulary) - 1


def _pad_id(config: ScratchModelConfig) -> int:
    return config.vocabulary.index(config.padding)


def _model_config(config: ScratchModelConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "architectures": [_CLASS_NAMES[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": len(config.vocabulary),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "hidden_act": "silu",
        "rms_norm_eps": _RMS_NORM_EPSILON,
        "rope_theta": config.rope_base,
        "rope_scaling": None,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": config.hidden_size**-0.5,
        "use_cache": True,
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": _eos_id(config),
        "pad_token_id": _pad_id(config),
    }
    if config.architecture == "llama":
        fields["mlp_bias"] = False
    else:
        fields |= {"use_sliding_window": False, "sliding_window": None}
    return fields


def _weights(config: ScratchModelConfig, seed: int) -> dict[str, FloatArray]:
    """Tensors by Hugging Face name, float32; matrices are [out, in]."""
    random = np.random.default_rng(seed)
    width, ffn = config.hidden_size, config.ffn_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def normal(rows: int, columns: int, std: float) -> FloatArray:
        return (random.standard_normal((rows, columns), dtype=np.float32) * np.float32(std)).astype(np.float32)

    def ones(size: int) -> FloatArray:
        return np.ones(size, dtype=np.float32)

    std = width**-0.5
    tensors = {"model.embed_tokens.weight": normal(len(config.vocabulary), width, std)}
    for index in range(config.num_layers):
        layer = f"model.layers.{index}"
        tensors |= {
            f"{layer}.input_layernorm.weight": ones(width),
            f"{layer}.self_attn.q_proj.weight": normal(queries, width, std),
            f"{layer}.self_attn.k_proj.weight": normal(keys, width, std),
            f"{layer}.self_attn.v_proj.weight": normal(keys, width, std),
            f"{layer}.self_attn.o_proj.weight": normal(width, queries, std * _RESIDUAL_SCALE),
            f"{layer}.post_attention_layernorm.weight": ones(width),
            f"{layer}.mlp.gate_proj.weight": normal(ffn, width, std),
            f"{layer}.mlp.up_proj.weight": normal(ffn, width, std),
            f"{layer}.mlp.down_proj.weight": normal(width, ffn, std * _RESIDUAL_SCALE),
        }
        if config.architecture == "qwen2":
            tensors |= {
                f"{layer}.self_attn.q_proj.bias": np.zeros(queries, dtype=np.float32),
                f"{layer}.self_attn.k_proj.bias": np.zeros(keys, dtype=np.float32),
                f"{layer}.self_attn.v_proj.bias": np.zeros(keys, dtype=np.float32),
            }
        if config.architecture == "qwen3":
            tensors |= {
                f"{layer}.self_attn.q_norm.weight": ones(config.head_dim),
                f"{layer}.self_attn.k_norm.weight": ones(config.head_dim),
            }
    tensors["model.norm.weight"] = ones(width)
    if not config.tie_embeddings:
        tensors["lm_head.weight"] = normal(len(config.vocabulary), width, std)
    return tensors


def _tokenizer(config: ScratchModelConfig) -> Tokenizer:
    """One token a character; a character outside the vocabulary is an error, never a silent unknown token."""
    vocabulary = {character: index for index, character in enumerate(config.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = [AddedToken(character, special=True) for character in (config.padding, config.vocabulary[-1])]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
