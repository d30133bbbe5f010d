"""What the benchmarks of the rollout side share: models by shape, random weights, engine settings.

SMOL has the shape of SmolLM2-135M (538 MB in fp32), TINY that of the quick start's model (0.34M parameters).
Neither has an end-of-sequence token, so that lengths are as requested.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Weights = dict[str, npt.NDArray[np.float32]]

SMOL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "dtype": "float32",
}
TINY: dict[str, Any] = {
    **SMOL,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 43,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "intermediate_size": 256,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
}


def write_folder(folder: Path, shape: dict[str, Any]) -> Path:
    """A model folder without weights: engines start with random ones and get theirs by update."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


def random_weights(shape: dict[str, Any], seed: int = 0) -> Weights:
    """Weights under Hugging Face names, layer by layer."""
    draw = np.random.default_rng(seed)
    hidden, ffn, head = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    queries, keys = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return draw.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)

    def ones(size: int) -> npt.NDArray[np.float32]:
        return np.ones(size, dtype=np.float32)

    weights = {"model.embed_tokens.weight": matrix(shape["vocab_size"], hidden)}
    for layer in range(shape["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        weights |= {
            f"{name}input_layernorm.weight": ones(hidden),
            f"{name}self_attn.q_proj.weight": matrix(queries, hidden),
            f"{name}self_attn.k_proj.weight": matrix(keys, hidden),
            f"{name}self_attn.v_proj.weight": matrix(keys, hidden),
            f"{name}self_attn.o_proj.weight": matrix(hidden, queries),
            f"{name}post_attention_layernorm.weight": ones(hidden),
            f"{name}mlp.gate_proj.weight": matrix(ffn, hidden),
            f"{name}mlp.up_proj.weight": matrix(ffn, hidden),
            f"{name}mlp.down_proj.weight": matrix(hidden, ffn),
        }
        if shape["model_type"] == "qwen3":
            weights |= {f"{name}self_attn.q_norm.weight": ones(head), f"{name}self_attn.k_norm.weight": ones(head)}
    return weights | {"model.norm.weight": ones(hidden)}
