"""AdamW over all parameters of a rank, kept in a few flat buffers.

One buffer each for weights, gradients and moments: clipping, the reduction over ranks and the step are one
operation each, however many tensors the model has. Parameters become views of the weight buffer. float32 weights
are trained in place; of bfloat16 weights a float32 copy is the truth, and each gradient is added to a float32
buffer as soon as it exists.

Distributed, each rank with the same weights keeps the truth and the moments of an equal share of them alone:
gradients are reduced to the shares, and updated weights gathered (Rajbhandari et al., 2020, "ZeRO", stage 1;
Megatron-Core's distributed optimizer is the same on its own buffers). Experts are a partition of their own,
because other ranks have the same ones.

Lives as long as the loaded model; `reset` forgets the moments (k1.5: each iteration is a new problem).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer.megatron.parallel import Layout
from crescendo.trainer.optimizer_spans import Kind, Span, arrange

PARTS = ("weights", "first", "second")


@dataclass(frozen=True)
class StepResult:
    """grad_norm: before clipping; skipped: the gradient was not finite and nothing changed."""

    grad_norm: float
    skipped: bool


class _Partition:
    """Parameters that the same ranks hold. start, stop: in the flat buffers, padded to equal shares."""

    def __init__(self, start: int, stop: int, spans: list[Span], group: dist.ProcessGroup | None, share: bool) -> None:
        self.start, self.stop, self.spans, self.group = start, stop, spans, group
        self.shares = dist.get_world_size(group) if share and group is not None else 1
        size = (stop - start) // self.shares
        self.own_start = start + (dist.get_rank(group) if self.shares > 1 else 0) * size
        self.own_stop = self.own_start + size
        self.main = self.first = self.second = torch.empty(0)

    def allocate(self, working: torch.Tensor) -> None:
        """The truth and the moments of this rank's share; float32 weights are their own truth."""
        mine = working[self.own_start : self.own_stop]
        self.main = mine if mine.dtype is torch.float32 else mine.float()
        self.first, self.second = torch.zeros_like(self.main), torch.zeros_like(self.main)

    def part(self, name: str) -> torch.Tensor:
        """This rank's share of weights, first or second moments."""
        return {"weights": self.main, "first": self.first, "second": self.second}[name]

    def whole(self, own: torch.Tensor) -> torch.Tensor:
        """All shares of something, in order."""
        if self.shares == 1:
            return own
        result = own.new_empty(self.stop - self.start)
        dist.all_gather_single(result, own.contiguous(), group=self.group)
        return result

    def reduce(self, grad: torch.Tensor) -> None:
        """Sums gradients over ranks; distributed, only this rank's share is right afterwards."""
        if self.group is None:
            return
        everything = grad[self.start : self.stop]
        if self.shares == 1:
            dist.all_reduce(everything, group=self.group)
            return
        mine = torch.empty_like(self.main)
        dist.reduce_scatter_single(mine, everything, group=self.group)
        grad[self.own_start : self.own_stop].copy_(mine)

    def own_spans(self) -> Iterator[tuple[Span, int, int]]:
        """Stretches within this rank's share, with their ends in the flat buffers."""
        for span in self.spans:
            start, stop = max(span.start, self.own_start), min(span.stop, self.own_stop)
            if start < stop:
                yield span, start, stop


class FlatAdamW:
    """Flat buffers with AdamW (Loshchilov and Hutter, 2019). Weight decay spares vectors (norms, biases).

    kinds: how each parameter lies in the layout; distributed: each rank keeps a share of the state.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        kinds: Mapping[str, Kind],
        at: Layout,
        *,
        distributed: bool = False,
    ) -> None:
        self._at = at
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        share = distributed and at.reduce_group is not None
        multiple = dist.get_world_size(at.reduce_group) if share else 1
        self._ranges, runs, total = arrange(parameters, kinds, multiple)
        dtype = next(iter(parameters.values())).dtype
        self.working = torch.zeros(total, dtype=dtype, device=at.device)
        self.grad = torch.zeros(total, dtype=torch.float32, device=at.device)
        for name, (start, stop) in self._ranges.items():
            parameter = parameters[name]
            self.working[start:stop].copy_(parameter.detach().reshape(-1))
            parameter.data = self.working[start:stop].view(parameter.shape)
            gradient = self.grad[start:stop].view(parameter.shape)
            if dtype is torch.float32:
                parameter.grad = gradient
            else:
                parameter.register_post_accumulate_grad_hook(_adds_to(gradient))  # type: ignore[no-untyped-call]
        groups = {False: at.reduce_group, True: at.expert_reduce_group}
        self._partitions = [
            _Partition(start, stop, spans, groups[expert], share) for expert, start, stop, spans in runs
        ]
        for partition in self._partitions:
            partition.allocate(self.working)
        self._steps = torch.zeros((), dtype=torch.float32, device=at.device)

    def reset(self) -> None:
        """Fresh optimizer state: moments zero, step 0. Weights stay."""
        for partition in self._partitions:
            partition.first.zero_()
            partition.second.zero_()
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
        moments = [moment for each in self._partitions for moment in (each.first, each.second)]
        copies = [each.main for each in self._partitions if self.working.dtype is not torch.float32]
        return [self.working, self.grad, *copies, *moments]

    def zero_grad(self) -> None:
        """Clears gradients."""
        self.grad.zero_()

    def values(self, part: str) -> Iterator[tuple[str, torch.Tensor]]:
        """weights, first or second moments by parameter name, float32. Ranks that share them must iterate alike."""
        for partition in self._partitions:
            whole = partition.whole(partition.part(part))
            for name, (start, stop) in self._within(partition):
                yield name, whole[start - partition.start : stop - partition.start].view(self._shapes[name])

    def assign(self, part: str, name: str, tensor: torch.Tensor) -> None:
        """Sets a parameter's weights or moments; call `weights_assigned` after weights."""
        start, stop = self._ranges[name]
        partition = next(each for each in self._partitions if each.start <= start < each.stop)
        low, high = max(start, partition.own_start), min(stop, partition.own_stop)
        if low < high:
            own = partition.part(part)[low - partition.own_start : high - partition.own_start]
            own.copy_(tensor.reshape(-1)[low - start : high - start])

    def weights_assigned(self) -> None:
        """Brings the weights that the model computes with up to their truth."""
        for partition in self._partitions:
            own = self.working[partition.own_start : partition.own_stop]
            if own.dtype is not torch.float32:
                own.copy_(partition.main)
            if partition.shares > 1:
                everything = self.working[partition.start : partition.stop]
                dist.all_gather_single(everything, own.clone(), group=partition.group)

    def _within(self, partition: _Partition) -> Iterator[tuple[str, tuple[int, int]]]:
        return ((n, r) for n, r in self._ranges.items() if partition.start <= r[0] < partition.stop)

    def step(self, settings: trainer_pb2.AdamW, rate: float) -> StepResult:
        """Reduces gradients over ranks, clips them and takes one step. A gradient that is not finite is skipped."""
        self._reduce()
        norm = self._norm()
        if not torch.isfinite(norm):
            return StepResult(float(norm), skipped=True)
        if settings.clip_grad_norm > 0:
            self.grad.mul_((settings.clip_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self._steps += 1
        for partition in self._partitions:
            for span, start, stop in partition.own_spans():
                self._update(partition, slice(start, stop), settings, rate, span.kind.decayed)
        self.weights_assigned()
        return StepResult(float(norm), skipped=False)

    def _update(
        self, partition: _Partition, part: slice, settings: trainer_pb2.AdamW, rate: float, decayed: bool
    ) -> None:
        own = slice(part.start - partition.own_start, part.stop - partition.own_start)
        # torch's own kernel, as torch.optim.AdamW(fused=True) calls it; that class would load the compiler.
        torch._fused_adamw_(
            [partition.main[own]],
            [self.grad[part]],
            [partition.first[own]],
            [partition.second[own]],
            [],
            [self._steps],
            lr=rate,
            beta1=settings.beta1,
            beta2=settings.beta2,
            weight_decay=settings.weight_decay if decayed else 0.0,
            eps=settings.epsilon,
            amsgrad=False,
            maximize=False,
        )

    def _reduce(self) -> None:
        for partition in self._partitions:
            for span in partition.spans:
                for wanted, group in ((span.kind.partial, self._at.tensor_group),
                                      (span.kind.tied, self._at.embedding_group)):  # fmt: skip
                    if wanted and group is not None:
                        dist.all_reduce(self.grad[span.start : span.stop], group=group)
            partition.reduce(self.grad)

    def _norm(self) -> torch.Tensor:
        """Over the whole model: each weight's gradient counts once, wherever copies of it lie."""
        if self._at.world_size == 1:
            norm: torch.Tensor = torch.linalg.vector_norm(self.grad)
            return norm
        total = torch.zeros((), device=self._at.device)
        for partition in self._partitions:
            counted = [
                torch.linalg.vector_norm(self.grad[start:stop]).square()
                for span, start, stop in partition.own_spans()
                if not span.kind.copied and (span.kind.cut or self._at.tensor_rank == 0)
            ]
            squares = torch.stack([torch.zeros_like(total), *counted]).sum()
            if partition.shares > 1:
                dist.all_reduce(squares, group=partition.group)
            if partition.spans[0].kind.expert and self._at.expert_group is not None:
                dist.all_reduce(squares, group=self._at.expert_group)
            total += squares
        if self._at.model_group is not None:
            dist.all_reduce(total, group=self._at.model_group)
        return total.sqrt()


def _adds_to(gradient: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """A hook that moves a low-precision gradient into its float32 sum and lets it go."""

    def add(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            gradient.add_(parameter.grad)
            parameter.grad = None

    return add
