"""The layer spec: Megatron's local modules, with our attention and a gated unit of fewer passes over memory."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from crescendo.trainer.megatron.architectures import ModelShape
from crescendo.trainer.megatron.attention import PackedAttention
from crescendo.trainer.megatron.parallel import Layout


class SwiGlu(torch.nn.Module):
    """silu(gate) * up on the fused [.., 2 * ffn] output of linear_fc1 (Shazeer, 2020)."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        gate, up = fused.chunk(2, dim=-1)
        return F.silu(gate) * up


def block_spec(shape: ModelShape, at: Layout) -> TransformerBlockSubmodules:
    """The spec of this stage's decoder."""
    num_experts = shape.experts.count if shape.experts else None
    layer = get_gpt_layer_local_spec(num_experts=num_experts, qk_layernorm=shape.qk_norm, normalization="RMSNorm")
    parts = layer.submodules
    parts.self_attention.submodules.core_attention = PackedAttention
    parts.input_layernorm = parts.pre_mlp_layernorm = WrappedTorchNorm
    if shape.qk_norm:
        parts.self_attention.submodules.q_layernorm = WrappedTorchNorm
        parts.self_attention.submodules.k_layernorm = WrappedTorchNorm
    mlp = _submodules(parts.mlp)
    (_submodules(mlp.experts) if shape.experts else mlp).activation_func = SwiGlu
    layers = shape.num_layers // at.pipeline_parallel
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=WrappedTorchNorm)


def _submodules(spec: Any) -> Any:
    # Megatron-Core 0.16 describes feed-forward layers by a ModuleSpec, 0.19 by a functools.partial.
    return spec.submodules if isinstance(spec, ModuleSpec) else spec.keywords["submodules"]
