"""Attention over packed sequences, for Megatron's local layer spec.

Megatron's own local attention materializes [heads, T, T] scores and knows no packing. This module stands in
its place: it turns queries and keys by their positions and runs torch's fused attention on one block of
equally long sequences at a time (packing.py). Causal masking keeps the padding at the end of a row away from
real tokens. The blocks and the rotary tables travel through Megatron in its packed_seq_params.

With context parallelism this rank has two chunks of each sequence's positions (packing.context_part). Keys and
values of all ranks are gathered, which is exact and, with grouped-query attention, little next to the scores;
each chunk of queries then sees the keys up to its own end.

Shapes: N tokens of this rank's part of the micro-batch, h query heads and g key/value heads of this rank, d head
width, C context-parallel ranks.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from torch.nn.attention.bias import causal_lower_right

from crescendo.trainer.megatron.architectures import Rope
from crescendo.trainer.packing import Block


@dataclass
class PackedRow(PackedSeqParams):  # type: ignore[misc]
    """One micro-batch's layout. cos, sin: [N, 1, d / 2]; context_rank of context_parts, joined by context_group.

    qkv_format is not `thd`, so that Megatron leaves the tensors alone.
    """

    blocks: tuple[Block, ...] = ()
    cos: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    sin: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    context_rank: int = 0
    context_parts: int = 1
    context_group: dist.ProcessGroup | None = None


def inverse_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Rotation speed of each pair of channels, in radians a token: [d / 2], float32.

    Su et al. (2021), section 3.4.2; kind llama3: Llama 3.1's reference code (apply_scaling); kind yarn: Peng et al.
    (2023), section 3.2, "NTK-by-parts".
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
    if rope.kind == "yarn":
        first, last = _turning(rope, rope.fast_turns, head_dim), _turning(rope, rope.slow_turns, head_dim)
        if rope.whole_channels:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        ramp = (torch.arange(head_dim // 2).float() - first) / max(last - first, 0.001)
        ramp = ramp.clamp(0.0, 1.0)
        return ramp * speeds / rope.factor + (1 - ramp) * speeds
    return speeds


def _turning(rope: Rope, turns: float, head_dim: int) -> float:
    """The pair of channels that turns so often within the original positions (Peng et al., equation 17)."""
    wavelengths = math.log(rope.original_positions / (turns * 2 * math.pi)) / math.log(rope.base)
    return head_dim / 2 * wavelengths


class RotaryTable:
    """Cosines and sines by position, grown on demand. Lives as long as the model."""

    def __init__(self, rope: Rope, head_dim: int, device: torch.device, dtype: torch.dtype) -> None:
        self._speeds = inverse_frequencies(rope, head_dim).to(device)
        self._dtype = dtype
        self._scale = rope.attention
        self._cos = torch.empty(0, head_dim // 2, device=device, dtype=dtype)
        self._sin = self._cos

    def at(self, positions: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for positions [N], each [N, 1, d / 2]; longest bounds the positions from above."""
        if longest > len(self._cos):
            size = max(longest, 2 * len(self._cos))
            angles = torch.outer(torch.arange(size, device=self._speeds.device).float(), self._speeds)
            self._cos = (angles.cos() * self._scale).to(self._dtype)
            self._sin = (angles.sin() * self._scale).to(self._dtype)
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
        q = _rotate(query.squeeze(1), row.cos, row.sin)
        k = _rotate(key.squeeze(1), row.cos, row.sin)
        v = value.squeeze(1)
        sizes = [block.num_tokens for block in row.blocks]
        if row.context_group is None:
            parts = zip(row.blocks, *(torch.split(t, sizes) for t in (q, k, v)), strict=True)
            return torch.cat([self._whole(*part) for part in parts]).unsqueeze(1)
        gathered = _gather_context(torch.stack((k, v), dim=1), row.context_group)  # [C, N, 2, g, d]
        divided = zip(row.blocks, torch.split(q, sizes), torch.split(gathered, sizes, dim=1), strict=True)
        return torch.cat([self._chunks(*part, row) for part in divided]).unsqueeze(1)

    def _whole(self, block: Block, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (_heads_first(t, block) for t in (q, k, v))
        k, v = _for_each_head(k, q), _for_each_head(v, q)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self._scale)
        return out.transpose(1, 2).reshape(block.num_tokens, -1)

    def _chunks(self, block: Block, q: torch.Tensor, kv: torch.Tensor, row: PackedRow) -> torch.Tensor:
        """kv: [C, rows * length, 2, g, d], each context rank's share of the same sequences."""
        parts, width = row.context_parts, block.length // 2
        shares = [_heads_first(share.flatten(1, 2), block) for share in kv]
        early, late = [share[:, :, :width] for share in shares], [share[:, :, width:] for share in shares]
        k, v = torch.cat([*early, *reversed(late)], dim=2).chunk(2, dim=1)
        q = _heads_first(q, block)
        k, v = _for_each_head(k, q), _for_each_head(v, q)
        outputs = []
        for own, chunk in enumerate((row.context_rank, 2 * parts - 1 - row.context_rank)):
            seen = (chunk + 1) * width
            mask = causal_lower_right(width, seen)
            queries = q[:, :, own * width : (own + 1) * width]
            outputs.append(
                F.scaled_dot_product_attention(queries, k[:, :, :seen], v[:, :, :seen], mask, scale=self._scale)
            )
        return torch.cat(outputs, dim=2).transpose(1, 2).reshape(block.num_tokens, -1)


def _heads_first(tensor: torch.Tensor, block: Block) -> torch.Tensor:
    """[rows * length, h, d] as [rows, h, length, d]."""
    return tensor.reshape(block.rows, block.length, *tensor.shape[1:]).transpose(1, 2)


def _for_each_head(tensor: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Keys or values once for each query head that uses them."""
    heads = queries.shape[1] // tensor.shape[1]
    return tensor if heads == 1 else tensor.repeat_interleave(heads, dim=1)


class _GatherContext(torch.autograd.Function):
    """Stacks the tensors of all context ranks; each rank's gradient is the sum of what all found for it."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        ctx.shape = own.shape
        parts = dist.get_world_size(group)
        result = own.new_empty(parts * len(own), *own.shape[1:])
        dist.all_gather_single(result, own.contiguous(), group=group)
        return result.view(parts, *own.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        result = grads[0].new_empty(ctx.shape)
        dist.reduce_scatter_single(result, grads[0].flatten(0, 1).contiguous(), group=ctx.group)
        return result, None


def _gather_context(own: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    result: torch.Tensor = _GatherContext.apply(own, group)  # type: ignore[no-untyped-call]
    return result
