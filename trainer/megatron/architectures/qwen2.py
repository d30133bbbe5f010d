"""Qwen2 and Qwen2.5: Llama with biases on query, key and value."""

from collections.abc import Mapping, Sequence
from typing import Any

from crescendo.trainer.megatron.architectures import llama
from crescendo.trainer.megatron.architectures.base import Architecture, ModelShape, Rule, read_shape


def _read(config: Mapping[str, Any]) -> ModelShape:
    return read_shape(config, qkv_bias=True)


def _layer_rules(shape: ModelShape) -> Sequence[Rule]:
    return (*llama.layer_rules(shape), llama.projection_rule(shape, "bias"))


QWEN2 = Architecture("qwen2", _read, _layer_rules, llama.outer_rules)
