"""Micro-batches through the whole model: forward, loss, backward; or forward alone.

On one stage this is a loop. With pipeline parallelism Megatron's schedule (one forward, one backward; Narayanan et
al., 2021, section 2.2) moves activations and gradients between stages; the loss is computed on the last one.
Called by trainer/step.py, trainer/sft.py and trainer/publish.py on every rank with the same number of
micro-batches a data-parallel rank.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func

from crescendo.trainer.megatron.cpu import CudaMeansCpu
from crescendo.trainer.megatron.model import PolicyModel, Scores
from crescendo.trainer.packing import MicroBatch

LossOf = Callable[[int, Scores], torch.Tensor]


def accumulate(model: PolicyModel, micros: Sequence[MicroBatch], temperature: float, loss_of: LossOf) -> None:
    """Adds the gradients of all micro-batches' losses.

    loss_of: from the index of a micro-batch and its scores; called on ranks of the last stage only, in order.
    """
    if model.at.pipeline_group is None:
        for index, micro in enumerate(micros):
            loss_of(index, model.scores(micro, temperature)).backward()  # type: ignore[no-untyped-call]
        return

    def finish(index: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        loss = loss_of(index, model.score(hidden, micros[index], temperature))
        return loss, torch.ones((), dtype=torch.int, device=loss.device), {}

    _scheduled(model, micros, finish, forward_only=False)


def log_probs(model: PolicyModel, micros: Sequence[MicroBatch], temperature: float) -> list[torch.Tensor]:
    """Log-probabilities of each micro-batch's scored tokens, without gradient, on every stage."""
    with torch.no_grad():
        if model.at.pipeline_group is None:
            return [model.scores(micro, temperature).log_probs for micro in micros]

        def finish(index: int, hidden: torch.Tensor, non_loss_data: bool) -> torch.Tensor:
            return model.score(hidden, micros[index], temperature).log_probs

        found = _scheduled(model, micros, finish, forward_only=True)
        last = model.at.pipeline_parallel - 1
        if not model.at.is_last_stage:
            found = [torch.empty(len(micro.targets), device=model.at.device) for micro in micros]
        for each in found:
            dist.broadcast(each, group=model.at.pipeline_group, group_src=last)
        return found


def _scheduled(
    model: PolicyModel, micros: Sequence[MicroBatch], finish: Callable[..., Any], *, forward_only: bool
) -> list[Any]:
    """Runs Megatron's schedule; returns what `finish` gave for each micro-batch on the last stage."""
    if not micros:
        return []
    numbers = iter(range(len(micros)))

    def forward_step(iterator: Any, _: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
        index = next(iterator)
        hidden = model.hidden(micros[index])
        return hidden, lambda output, **settings: finish(index, output, **settings)

    with CudaMeansCpu() if model.at.device.type == "cpu" else nullcontext():
        done: list[Any] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=numbers,
            model=model.module,
            num_microbatches=len(micros),
            seq_length=max(micro.num_tokens for micro in micros),
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )
    return done
