"""The numbers of one training step, summed over micro-batches and ranks."""

import math

import torch
import torch.distributed as dist

from crescendo.trainer.algorithms import Objective, Tokens
from crescendo.trainer.megatron.parallel import Layout
from crescendo.trainer.optimizer import StepResult

_SUMS = ("loss", "tokens", "kl", "entropy", "clipped", "difference_sum", "difference_tokens", "weight_sum")


class Measures:
    """Collects while a step runs; `reduced` talks to the other data-parallel ranks and must run on each."""

    def __init__(self, at: Layout) -> None:
        self._at = at
        self._sums = dict.fromkeys(_SUMS, 0.0)
        self._maxima = {"log_prob_difference_max": 0.0, "ratio_max": 0.0}
        self._seconds: dict[str, float] = {}
        self._norms: list[float] = []
        self._skipped = 0
        self._rate = 0.0

    def seconds(self, part: str, seconds: float) -> None:
        """Adds wall-clock time of a part of the step."""
        key = f"seconds_{part}"
        self._seconds[key] = self._seconds.get(key, 0.0) + seconds

    def optimizer_step(self, result: StepResult, rate: float) -> None:
        """Notes an optimizer step or its omission."""
        self._rate = rate
        self._skipped += result.skipped
        self._norms.append(result.grad_norm)

    def micro_batch(
        self,
        loss: float,
        tokens: Tokens,
        entropies: torch.Tensor,
        behaviour: torch.Tensor,
        old: torch.Tensor,
        objective: Objective,
    ) -> None:
        """Adds one micro-batch. behaviour, old, entropies: [R].

        kl_to_iterate is Schulman's k3 estimate, exp(-x) - 1 + x with x = log pi / pi_iterate.
        """
        counted = tokens.weights > 0
        log_ratio = (tokens.log_probs.detach() - tokens.reference)[counted]
        current = (tokens.reference - behaviour)[~old].abs()
        parts = (
            counted.sum(),
            (torch.expm1(-log_ratio) + log_ratio).sum(),
            entropies[counted].sum(),
            objective.clipped(tokens).sum(),
            current.sum(),
            torch.tensor(len(current), device=current.device),
            tokens.weights.sum(),
        )
        values = torch.stack([part.double() for part in parts]).tolist()
        for name, value in zip(_SUMS[1:], values, strict=True):
            self._sums[name] += value
        self._sums["loss"] += loss
        if len(current):
            self._raise("log_prob_difference_max", float(current.max()))
        if len(log_ratio):
            self._raise("ratio_max", math.exp(min(50.0, float(log_ratio.max()))))

    def _raise(self, name: str, value: float) -> None:
        # NaN must show, and max() would drop it.
        self._maxima[name] = value if math.isnan(value) else max(self._maxima[name], value)

    def reduced(self) -> dict[str, float]:
        """The step's metrics, over all ranks."""
        self._reduce()
        sums = self._sums
        tokens = max(1.0, sums["tokens"])
        compared = sums["difference_tokens"]
        result = {
            "loss": sums["loss"],
            "grad_norm": sum(self._norms) / len(self._norms) if self._norms else 0.0,
            "learning_rate": self._rate,
            "kl_to_iterate": sums["kl"] / tokens,
            "entropy": sums["entropy"] / tokens,
            "clip_fraction": sums["clipped"] / tokens,
            "importance_mean": sums["weight_sum"] / tokens,
            "skipped_steps": float(self._skipped),
            **self._maxima,
            **self._seconds,
        }
        if compared:
            result["log_prob_difference_mean"] = sums["difference_sum"] / compared
        else:
            del result["log_prob_difference_max"]
        return result

    def _reduce(self) -> None:
        """Over data-parallel ranks; stages but the last have measured nothing, and learn it from that one."""
        device = self._at.device
        sums = torch.tensor(list(self._sums.values()), dtype=torch.float64, device=device)
        maxima = torch.tensor(list(self._maxima.values()), dtype=torch.float64, device=device)
        for group in (self._at.data_group, self._at.pipeline_group):
            if group is not None:
                dist.all_reduce(sums, group=group)
                dist.all_reduce(maxima, op=dist.ReduceOp.MAX, group=group)
        self._sums = dict(zip(self._sums, sums.tolist(), strict=True))
        self._maxima = dict(zip(self._maxima, maxima.tolist(), strict=True))
