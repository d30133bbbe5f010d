"""Attention over packed sequences, for Megatron's local layer spec.

Megatron's own local attention materializes [heads, T, T] scores and knows no packing. This module stands in
its place: it turns queries and keys by their positions and runs torch's fused attention on one block of
equally long sequences at a time (packing.py). Causal masking keeps the padding at the end of a row away from
real tokens. The blocks and the rotary tables travel through Megatron in its packed_seq_params.

Shapes: N tokens of the micro-batch, h query heads and g key/value heads of this rank, d head width.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams

from crescendo.trainer.megatron.architectures import Rope
from crescendo.trainer.packing import Block


@dataclass
class PackedRow(PackedSeqParams):  # type: ignore[misc]
    """One micro-batch's layout. cos, sin: [N, 1, d / 2].

    qkv_format is not `thd`, so that Megatron leaves the tensors alone.
    """

    blocks: tuple[Block, ...] = ()
    cos: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    sin: torch.Tensor = field(default_factory=lambda: torch.empty(0))


def inverse_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Rotation speed of each pair of channels, in radians a token: [d / 2], float32.

    Su et al. (2021), section 3.4.2; kind llama3: Llama 3.1's reference code (apply_scaling).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    speeds = 1.0 / rope.base**exponents
    if rope.kind == "linear":
        return speeds / rope.factor
    if rope.kind == "llama3":
        turns = rope.original_positions * speeds / (2 * math.pi)
        ramp = (turns - rope.low_factor) / (rope.high_factor - rope.low_factor)
        ramp = ramp.clamp(0.0, 1.0)
        return (1 - ramp) * speeds / rope.factor + ramp * speeds
    return speeds


class RotaryTable:
    """Cosines and sines by position, grown on demand. Lives as long as the model."""

    def __init__(self, rope: Rope, head_dim: int, device: torch.device, dtype: torch.dtype) -> None:
        self._speeds = inverse_frequencies(rope, head_dim).to(device)
        self._dtype = dtype
        self._cos = torch.empty(0, head_dim // 2, device=device, dtype=dtype)
        self._sin = self._cos

    def at(self, positions: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for positions [N], each [N, 1, d / 2]; longest bounds the positions from above."""
        if longest > len(self._cos):
            size = max(longest, 2 * len(self._cos))
            angles = torch.outer(torch.arange(size, device=self._speeds.device).float(), self._speeds)
            self._cos, self._sin = angles.cos().to(self._dtype), angles.sin().to(self._dtype)
        return self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)


class _Rotate(torch.autograd.Function):
    """x * cos + rotate_half(x) * sin with half the memory traffic of the formula written out."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, sin, -1.0), None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return result


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> torch.Tensor:
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    first, second = x.chunk(2, dim=-1)
    out_first, out_second = result.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first)
    out_first.addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out_second)
    out_second.addcmul_(first, sin, value=sign)
    return result


class PackedAttention(torch.nn.Module):
    """Megatron's core-attention seam: softmax(q k^T / sqrt(d)) v, causal, within each packed sequence."""

    def __init__(self, config: Any, layer_number: int, *_: Any, softmax_scale: float | None = None, **__: Any) -> None:
        super().__init__()
        self.layer_number = layer_number
        self._scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedRow | None = None,
    ) -> torch.Tensor:
        """query: [N, 1, h, d]; key, value: [N, 1, g, d]; the result: [N, 1, h * d]."""
        if not isinstance(packed_seq_params, PackedRow):
            raise TypeError("PackedAttention needs a PackedRow in packed_seq_params")
        row = packed_seq_params
        rotated_query = _rotate(query.squeeze(1), row.cos, row.sin)
        rotated_key = _rotate(key.squeeze(1), row.cos, row.sin)
        sizes = [block.num_tokens for block in row.blocks]
        parts = zip(
            row.blocks,
            torch.split(rotated_query, sizes),
            torch.split(rotated_key, sizes),
            torch.split(value.squeeze(1), sizes),
            strict=True,
        )
        outputs = [self._block(block, q, k, v) for block, q, k, v in parts]
        return torch.cat(outputs).unsqueeze(1)

    def _block(self, block: Block, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        heads, groups = q.shape[1], k.shape[1]
        q, k, v = (t.view(block.rows, block.length, t.shape[1], t.shape[2]).transpose(1, 2) for t in (q, k, v))
        if heads != groups:
            k, v = (t.repeat_interleave(heads // groups, dim=1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self._scale)
        return out.transpose(1, 2).reshape(block.num_tokens, -1)
