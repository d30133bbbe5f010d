"""AdamW over all parameters of a rank, kept in a few flat buffers.

One buffer each for weights, gradients and moments: clipping, the all-reduce over data-parallel ranks and the
step are one operation each, however many tensors the model has. Parameters become views of the weight buffer.
float32 weights are trained in place; of bfloat16 weights a float32 copy is the truth and gradients are summed
in float32.

Lives as long as the loaded model; `reset` forgets the moments (k1.5: each iteration is a new problem).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer.megatron.parallel import Layout

# Norms of single heads are replicated over tensor-parallel ranks, but each rank's heads give another gradient.
_PARTIAL = ("q_layernorm", "k_layernorm")


@dataclass(frozen=True)
class _Span:
    """A stretch of the buffers whose parameters are treated alike. sharded: each tensor rank has another part."""

    start: int
    stop: int
    decayed: bool
    sharded: bool
    partial: bool


@dataclass(frozen=True)
class StepResult:
    """grad_norm: before clipping; skipped: the gradient was not finite and nothing changed."""

    grad_norm: float
    skipped: bool


class FlatAdamW:
    """Flat buffers with AdamW (Loshchilov and Hutter, 2019). Weight decay spares vectors (norms, biases)."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], sharded: Mapping[str, bool], at: Layout) -> None:
        self._at = at
        order = sorted(parameters, key=lambda name: _kind(name, parameters[name], sharded[name]))
        self._spans = _spans(order, parameters, sharded)
        total = self._spans[-1].stop if self._spans else 0
        dtype = next(iter(parameters.values())).dtype
        self.working = torch.empty(total, dtype=dtype, device=at.device)
        self._working_grad = torch.zeros_like(self.working)
        offset = 0
        self.ranges: dict[str, tuple[int, int]] = {}
        for name in order:
            parameter = parameters[name]
            stop = offset + parameter.numel()
            self.working[offset:stop].copy_(parameter.detach().reshape(-1))
            parameter.data = self.working[offset:stop].view(parameter.shape)
            parameter.grad = self._working_grad[offset:stop].view(parameter.shape)
            self.ranges[name] = (offset, stop)
            offset = stop
        in_place = dtype is torch.float32
        self.main = self.working if in_place else self.working.float()
        self.grad = self._working_grad if in_place else torch.zeros_like(self.main)
        self.first = torch.zeros_like(self.main)
        self.second = torch.zeros_like(self.main)
        self._steps = torch.zeros((), dtype=torch.float32, device=at.device)

    def reset(self) -> None:
        """Fresh optimizer state: moments zero, step 0. Weights stay."""
        self.first.zero_()
        self.second.zero_()
        self._steps.zero_()

    @property
    def step_count(self) -> int:
        """Steps since the last reset."""
        return int(self._steps)

    @step_count.setter
    def step_count(self, steps: int) -> None:
        self._steps.fill_(steps)

    @property
    def buffers(self) -> list[torch.Tensor]:
        """Every buffer of its own, for moving to the host and back."""
        separate = [] if self.main is self.working else [self.main, self.grad]
        return [self.working, self._working_grad, *separate, self.first, self.second]

    def zero_grad(self) -> None:
        """Clears gradients."""
        self._working_grad.zero_()
        if self.grad is not self._working_grad:
            self.grad.zero_()

    def collect(self) -> None:
        """After each micro-batch: sums low-precision gradients into the float32 buffer."""
        if self.grad is not self._working_grad:
            self.grad.add_(self._working_grad)
            self._working_grad.zero_()

    def weights_changed(self) -> None:
        """After weights were loaded from outside: brings the float32 copy up to them."""
        if self.main is not self.working:
            self.main.copy_(self.working)

    def step(self, settings: trainer_pb2.AdamW, rate: float) -> StepResult:
        """Reduces gradients over ranks, clips them and takes one step. A gradient that is not finite is skipped."""
        self._reduce()
        norm = self._norm()
        if not torch.isfinite(norm):
            return StepResult(float(norm), skipped=True)
        if settings.clip_grad_norm > 0:
            self.grad.mul_((settings.clip_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self._steps += 1
        for span in self._spans:
            self._update(span, settings, rate)
        if self.main is not self.working:
            self.working.copy_(self.main)
        return StepResult(float(norm), skipped=False)

    def _update(self, span: _Span, settings: trainer_pb2.AdamW, rate: float) -> None:
        part = slice(span.start, span.stop)
        # torch's own kernel, as torch.optim.AdamW(fused=True) calls it; that class would load the compiler.
        torch._fused_adamw_(
            [self.main[part]],
            [self.grad[part]],
            [self.first[part]],
            [self.second[part]],
            [],
            [self._steps],
            lr=rate,
            beta1=settings.beta1,
            beta2=settings.beta2,
            weight_decay=settings.weight_decay if span.decayed else 0.0,
            eps=settings.epsilon,
            amsgrad=False,
            maximize=False,
        )

    def _reduce(self) -> None:
        if self._at.data_group is not None:
            dist.all_reduce(self.grad, group=self._at.data_group)
        if self._at.tensor_group is not None:
            for span in self._spans:
                if span.partial:
                    dist.all_reduce(self.grad[span.start : span.stop], group=self._at.tensor_group)

    def _norm(self) -> torch.Tensor:
        if self._at.tensor_group is None:
            norm: torch.Tensor = torch.linalg.vector_norm(self.grad)
            return norm
        squares = [torch.linalg.vector_norm(self.grad[s.start : s.stop]).square() for s in self._spans]
        cut = torch.stack([q for q, s in zip(squares, self._spans, strict=True) if s.sharded]).sum()
        dist.all_reduce(cut, group=self._at.tensor_group)
        whole = [q for q, s in zip(squares, self._spans, strict=True) if not s.sharded]
        return torch.stack([cut, *whole]).sum().sqrt()


def _kind(name: str, parameter: torch.nn.Parameter, sharded: bool) -> tuple[bool, int]:
    if any(part in name for part in _PARTIAL):
        return (True, 2)
    return (parameter.ndim < 2, 0 if sharded else 1)


def _spans(order: list[str], parameters: Mapping[str, torch.nn.Parameter], sharded: Mapping[str, bool]) -> list[_Span]:
    spans: list[_Span] = []
    kinds: list[tuple[bool, int]] = []
    offset = 0
    for name in order:
        kind = _kind(name, parameters[name], sharded[name])
        stop = offset + parameters[name].numel()
        if kinds and kinds[-1] == kind:
            spans[-1] = _Span(spans[-1].start, stop, not kind[0], kind[1] == 0, kind[1] == 2)
        else:
            spans.append(_Span(offset, stop, not kind[0], kind[1] == 0, kind[1] == 2))
            kinds.append(kind)
        offset = stop
    return spans
