"""Tiny Hugging Face folders with random weights, one a family, made by transformers itself."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

COMMON: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 80,
    "vocab_size": 61,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
}


def configs() -> dict[str, Any]:
    """By name: each mapping that the trainer has, and what varies within it."""
    return {
        "llama": LlamaConfig(**COMMON, tie_word_embeddings=False),
        "llama3-rope": LlamaConfig(**COMMON, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE),
        "qwen2": Qwen2Config(**COMMON, tie_word_embeddings=True),
        "qwen2-yarn": Qwen2Config(**COMMON, tie_word_embeddings=False, rope_parameters=YARN),
        "qwen3": Qwen3Config(**COMMON, tie_word_embeddings=True),
        "qwen3-linear": Qwen3Config(**COMMON, tie_word_embeddings=False, rope_parameters=LINEAR),
        "qwen3-moe": Qwen3MoeConfig(**COMMON, **EXPERTS, tie_word_embeddings=False),
        "qwen3-moe-plain": Qwen3MoeConfig(**COMMON, **EXPERTS | {"norm_topk_prob": False}, tie_word_embeddings=True),
    }


def write_model(folder: Path, name: str, seed: int = 0) -> PreTrainedModel:
    """Writes a model folder and returns transformers' own model of it."""
    torch.manual_seed(seed)
    config = configs()[name]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # Biases and norms away from their trivial values, so that a lost one shows.
            spread = 0.2 if parameter.ndim == 1 else 0.15
            parameter.add_(torch.randn_like(parameter) * spread)
            if parameter_name.endswith("norm.weight"):
                parameter.abs_().add_(0.2)
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 256}))
    return model
