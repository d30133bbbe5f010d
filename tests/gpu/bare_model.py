"""A Qwen2-shaped decoder in plain PyTorch with random weights, for machines without Megatron and transformers.

What it measures is the hardware and the memory that a training step of that shape takes: the layers are those of
trainer/megatron (RMSNorm, rotary grouped-query attention, gated feed-forward, chunked log-probabilities). Activations
of long sequences are computed again a layer at a time (Chen et al. 2016); gradients are summed in float32.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_TOKENS = 2048
RECOMPUTE_TOKENS = 16384  # from this length on; activations of shorter sequences of 1.5B take less than 60 GiB


@dataclass(frozen=True)
class Size:
    """A model. flops_per_token: forward and backward of all matrices (Kaplan et al. 2020), attention left out."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def matrices(self) -> int:
        """Parameters that multiply: the output matrix counts, the embedding's look-up does not."""
        kv = self.kv_heads * self.head_dim
        layer = self.hidden * (self.hidden + 2 * kv) + self.hidden**2 + 3 * self.hidden * self.ffn
        return self.layers * layer + self.hidden * self.vocabulary

    def flops(self, tokens: int) -> float:
        """One step on one sequence: 6 a matrix parameter and token, and causal attention (Dao et al. 2022)."""
        attention = 6 * self.layers * self.hidden * tokens  # half of 12 L h T, a token
        return float(tokens) * (6 * self.matrices + attention)


QWEN_1_5B = Size(1536, 28, 12, 2, 8960, 151936)
TINY = Size(64, 2, 4, 2, 128, 300)


class Layer(torch.nn.Module):
    """One decoder layer; x: [T, H]."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        kv = size.kv_heads * size.head_dim
        self.size = size
        self.norm1, self.norm2 = torch.nn.RMSNorm(size.hidden), torch.nn.RMSNorm(size.hidden)
        self.qkv = torch.nn.Linear(size.hidden, size.hidden + 2 * kv)
        self.out = torch.nn.Linear(size.hidden, size.hidden, bias=False)
        self.up = torch.nn.Linear(size.hidden, 2 * size.ffn, bias=False)
        self.down = torch.nn.Linear(size.ffn, size.hidden, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        size = self.size
        kv = size.kv_heads * size.head_dim
        q, k, v = self.qkv(self.norm1(x)).split([size.hidden, kv, kv], dim=-1)
        q, k, v = (each.view(len(x), -1, size.head_dim).transpose(0, 1)[None] for each in (q, k, v))
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(mixed[0].transpose(0, 1).reshape(len(x), size.hidden))
        gate, up = self.up(self.norm2(x)).chunk(2, dim=-1)
        result: torch.Tensor = x + self.down(F.silu(gate) * up)
        return result


class Decoder(torch.nn.Module):
    """Random weights; tied embeddings."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.embedding = torch.nn.Embedding(size.vocabulary, size.hidden)
        torch.nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = torch.nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.norm = torch.nn.RMSNorm(size.hidden)

    def log_probs(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of each token from the second on, [T - 1] float32. tokens: [T]."""
        positions = torch.arange(len(tokens) - 1, device=tokens.device, dtype=torch.float32)
        half = self.size.head_dim // 2
        speeds = 1e6 ** (-torch.arange(half, device=tokens.device) / half)
        angles = positions[:, None] * speeds
        x = self.embedding(tokens[:-1])
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        again = len(tokens) > RECOMPUTE_TOKENS
        for layer in self.layers:
            x = checkpoint(layer, x, cos, sin, use_reentrant=False) if again else layer(x, cos, sin)
        x = self.norm(x)
        parts = [
            checkpoint(
                self._chunk, x[at : at + CHUNK_TOKENS], tokens[1 + at : 1 + at + CHUNK_TOKENS], use_reentrant=False
            )
            for at in range(0, len(x), CHUNK_TOKENS)
        ]
        return torch.cat(parts)

    def _chunk(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = (x @ self.embedding.weight[: self.size.vocabulary].T).float()
        return logits.gather(1, targets[: len(x), None])[:, 0] - logits.logsumexp(dim=1)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Step:
    """Model, float32 main weights and AdamW's moments; one step on some sequences, one after the other."""

    def __init__(self, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        with device:
            self.model = Decoder(size).to(torch.bfloat16)
        self.device = device
        self.main = [parameter.detach().float() for parameter in self.model.parameters()]
        self.optimizer = torch.optim.AdamW(self.main, lr=1e-6, fused=device.type == "cuda", foreach=False)

    def run(self, tokens: int, sequences: int = 1) -> float:
        """Mean loss of random tokens."""
        total = torch.zeros((), device=self.device)
        for _ in range(sequences):
            ids = torch.randint(self.model.size.vocabulary, (tokens + 1,), device=self.device)
            loss = -self.model.log_probs(ids).mean() / sequences
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            for main, parameter in zip(self.main, self.model.parameters(), strict=True):
                gradient, parameter.grad = parameter.grad, None
                if gradient is not None:
                    main.grad = gradient.float() if main.grad is None else main.grad.add_(gradient)
        self.optimizer.step()
        with torch.no_grad():
            for main, parameter in zip(self.main, self.model.parameters(), strict=True):
                main.grad = None
                parameter.copy_(main)
        return float(total)

    def buffers(self) -> list[torch.Tensor]:
        """Weights, main weights and moments."""
        moments = [value for state in self.optimizer.state.values() for value in state.values() if value.ndim]
        return [*(parameter.data for parameter in self.model.parameters()), *self.main, *moments]
