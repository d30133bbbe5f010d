"""Qwen3-MoE: Qwen3 whose every layer chooses some of many small feed-forward experts for each token.

The router's softmax runs over all experts; with `norm_topk_prob` the chosen ones are scaled to sum to one, which is
the softmax over the chosen logits alone, as Megatron computes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from crescendo.common.errors import ConfigError
from crescendo.trainer.megatron.architectures import llama, qwen3
from crescendo.trainer.megatron.architectures.base import Architecture, Experts, ModelShape, Rule, read_shape

_MEGATRON = "decoder.layers.{layer}.mlp."
_HF = "model.layers.{layer}.mlp."


def _read(config: Mapping[str, Any]) -> ModelShape:
    if config.get("mlp_only_layers") or int(config.get("decoder_sparse_step", 1)) != 1:
        raise ConfigError(
            "config.json: some layers have no experts (mlp_only_layers, decoder_sparse_step); the trainer has no "
            "mapping for such a mixture.",
            field="model.source",
        )
    experts = Experts(
        count=int(config.get("num_experts") or config["num_local_experts"]),  # transformers 5 writes the latter
        chosen=int(config["num_experts_per_tok"]),
        ffn_size=int(config["moe_intermediate_size"]),
        renormalize=bool(config.get("norm_topk_prob", False)),
    )
    return replace(read_shape(config, qk_norm=True), experts=experts)


def _layer_rules(shape: ModelShape) -> Sequence[Rule]:
    assert shape.experts is not None
    router = Rule(f"{_MEGATRON}router.weight", (f"{_HF}gate.weight",), ((shape.experts.count, shape.hidden_size),))
    expert = llama.gated_rules(
        f"{_MEGATRON}experts.local_experts.{{expert}}.",
        f"{_HF}experts.{{expert}}.",
        shape.hidden_size,
        shape.experts.ffn_size,
    )
    experts = [rule.of_expert(number) for number in range(shape.experts.count) for rule in expert]
    return (*llama.attention_rules(shape), *qwen3.head_norm_rules(shape), router, *experts)


QWEN3_MOE = Architecture("qwen3_moe", _read, _layer_rules, llama.outer_rules)
