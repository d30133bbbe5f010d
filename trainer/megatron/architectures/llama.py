"""Llama: RMS norm, rotary positions, grouped-query attention, gated feed-forward. Others build on its rules."""

from collections.abc import Mapping, Sequence
from typing import Any

from crescendo.trainer.megatron.architectures.base import (
    Architecture,
    Cut,
    ModelShape,
    Place,
    Rule,
    fuse_qkv,
    fuse_rows,
    read_shape,
    split_halves,
    split_qkv,
)

_HF = "model.layers.{layer}."
_MEGATRON = "decoder.layers.{layer}."


def projection_rule(shape: ModelShape, kind: str) -> Rule:
    """The fused query, key and value projection. kind: weight | bias."""
    names = tuple(f"{_HF}self_attn.{part}_proj.{kind}" for part in "qkv")
    tail = (shape.hidden_size,) if kind == "weight" else ()
    heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
    shapes = tuple((count * shape.head_dim, *tail) for count in heads)
    return Rule(f"{_MEGATRON}self_attention.linear_qkv.{kind}", names, shapes, Cut.ROWS, fuse_qkv, split_qkv)


def attention_rules(shape: ModelShape) -> Sequence[Rule]:
    """Attention with both norms of a layer."""
    norm = ((shape.hidden_size,),)
    output = ((shape.hidden_size, shape.num_heads * shape.head_dim),)
    return (
        Rule(f"{_MEGATRON}input_layernorm.weight", (f"{_HF}input_layernorm.weight",), norm),
        projection_rule(shape, "weight"),
        Rule(f"{_MEGATRON}self_attention.linear_proj.weight", (f"{_HF}self_attn.o_proj.weight",), output, Cut.COLUMNS),
        Rule(f"{_MEGATRON}pre_mlp_layernorm.weight", (f"{_HF}post_attention_layernorm.weight",), norm),
    )


def gated_rules(megatron: str, hugging_face: str, hidden_size: int, ffn_size: int) -> Sequence[Rule]:
    """A gated feed-forward layer below two prefixes: gate and up fused, then down."""
    up, down = (ffn_size, hidden_size), (hidden_size, ffn_size)
    names = (f"{hugging_face}gate_proj.weight", f"{hugging_face}up_proj.weight")
    return (
        Rule(f"{megatron}linear_fc1.weight", names, (up, up), Cut.ROWS, fuse_rows, split_halves),
        Rule(f"{megatron}linear_fc2.weight", (f"{hugging_face}down_proj.weight",), (down,), Cut.COLUMNS),
    )


def layer_rules(shape: ModelShape) -> Sequence[Rule]:
    """What every layer has."""
    mlp = gated_rules(f"{_MEGATRON}mlp.", f"{_HF}mlp.", shape.hidden_size, shape.ffn_size)
    return (*attention_rules(shape), *mlp)


def outer_rules(shape: ModelShape) -> Sequence[Rule]:
    """Embedding, final norm and output layer, which is a copy of the embedding where they are tied."""
    embedding, table = "model.embed_tokens.weight", ((shape.vocab_size, shape.hidden_size),)
    tied = shape.tie_embeddings
    return (
        Rule("embedding.word_embeddings.weight", (embedding,), table, Cut.ROWS, is_vocabulary=True, place=Place.FIRST),
        Rule("decoder.final_layernorm.weight", ("model.norm.weight",), ((shape.hidden_size,),), place=Place.LAST),
        Rule(
            "output_layer.weight",
            (embedding if tied else "lm_head.weight",),
            table,
            Cut.ROWS,
            is_vocabulary=True,
            place=Place.LAST,
            is_copy=tied,
        ),
    )


def _read(config: Mapping[str, Any]) -> ModelShape:
    return read_shape(config)


LLAMA = Architecture("llama", _read, layer_rules, outer_rules)
