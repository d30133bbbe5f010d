"""Qwen3, dense: Llama with an RMS norm on each query and key head."""

from collections.abc import Mapping, Sequence
from typing import Any

from crescendo.trainer.megatron.architectures import llama
from crescendo.trainer.megatron.architectures.base import Architecture, ModelShape, Rule, read_shape

_ATTENTION = "decoder.layers.{layer}.self_attention."
_HF = "model.layers.{layer}.self_attn."


def head_norm_rules(shape: ModelShape) -> Sequence[Rule]:
    """Norms of query and key heads."""
    norm = ((shape.head_dim,),)
    return (
        Rule(f"{_ATTENTION}q_layernorm.weight", (f"{_HF}q_norm.weight",), norm),
        Rule(f"{_ATTENTION}k_layernorm.weight", (f"{_HF}k_norm.weight",), norm),
    )


def _read(config: Mapping[str, Any]) -> ModelShape:
    return read_shape(config, qk_norm=True)


def _layer_rules(shape: ModelShape) -> Sequence[Rule]:
    return (*llama.layer_rules(shape), *head_norm_rules(shape))


QWEN3 = Architecture("qwen3", _read, _layer_rules, llama.outer_rules)
