"""Llama: RMS norm, rotary positions, grouped-query attention, gated feed-forward. Others build on its rules."""

from collections.abc import Mapping, Sequence
from typing import Any

from crescendo.trainer.megatron.architectures.base import (
    Architecture,
    Cut,
    ModelShape,
    Rule,
    fuse_qkv,
    fuse_rows,
    read_shape,
    split_halves,
    split_qkv,
)

_HF = "model.layers.{layer}."
_MEGATRON = "decoder.layers.{layer}."


def attention_rules(kind: str) -> Rule:
    """The fused query, key and value projection. kind: weight | bias."""
    names = tuple(f"{_HF}self_attn.{part}_proj.{kind}" for part in "qkv")
    return Rule(f"{_MEGATRON}self_attention.linear_qkv.{kind}", names, Cut.ROWS, fuse_qkv, split_qkv)


def layer_rules(shape: ModelShape) -> Sequence[Rule]:
    """What every layer has."""
    return (
        Rule(f"{_MEGATRON}input_layernorm.weight", (f"{_HF}input_layernorm.weight",)),
        attention_rules("weight"),
        Rule(f"{_MEGATRON}self_attention.linear_proj.weight", (f"{_HF}self_attn.o_proj.weight",), Cut.COLUMNS),
        Rule(f"{_MEGATRON}pre_mlp_layernorm.weight", (f"{_HF}post_attention_layernorm.weight",)),
        Rule(
            f"{_MEGATRON}mlp.linear_fc1.weight",
            (f"{_HF}mlp.gate_proj.weight", f"{_HF}mlp.up_proj.weight"),
            Cut.ROWS,
            fuse_rows,
            split_halves,
        ),
        Rule(f"{_MEGATRON}mlp.linear_fc2.weight", (f"{_HF}mlp.down_proj.weight",), Cut.COLUMNS),
    )


def outer_rules(shape: ModelShape) -> Sequence[Rule]:
    """Embedding, final norm and, unless tied, the output layer."""
    rules = [
        Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Cut.ROWS, is_vocabulary=True),
        Rule("decoder.final_layernorm.weight", ("model.norm.weight",)),
    ]
    if not shape.tie_embeddings:
        rules.append(Rule("output_layer.weight", ("lm_head.weight",), Cut.ROWS, is_vocabulary=True))
    return rules


def _read(config: Mapping[str, Any]) -> ModelShape:
    return read_shape(config)


LLAMA = Architecture("llama", _read, layer_rules, outer_rules)
