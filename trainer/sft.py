"""Supervised training: mean negative log-likelihood of response tokens, AdamW, a schedule.

Called by trainer/worker.py on every rank with the same chunk of examples; yields one report a step.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer.megatron import pipeline
from crescendo.trainer.megatron.model import PolicyModel, Scores
from crescendo.trainer.optimizer import FlatAdamW
from crescendo.trainer.packing import Sample
from crescendo.trainer.schedule import learning_rate
from crescendo.trainer.shares import share_of


def samples_of(request: trainer_pb2.TrainSftRequest, max_positions: int, vocab_size: int) -> list[Sample]:
    """The examples as sequences; raises RequestError for one that cannot be trained, with its index."""
    samples = []
    for index, example in enumerate(request.examples):
        prompt, response = list(example.prompt_token_ids), list(example.response_token_ids)
        tokens = np.asarray(prompt + response, dtype=np.int32)
        problem = ""
        if not prompt or not response:
            problem = "prompt and response must both have tokens"
        elif len(tokens) > max_positions:
            problem = f"{len(tokens)} tokens are more than the model's {max_positions} positions"
        elif tokens.min() < 0 or tokens.max() >= vocab_size:
            problem = f"a token is outside the vocabulary of {vocab_size}"
        if problem:
            raise RequestError(
                f"examples[{index}]: {problem}.", field="examples", fix="Filter the demonstrations before training."
            )
        samples.append(Sample(tokens, first=len(prompt)))
    return samples


def train(
    model: PolicyModel,
    optimizer: FlatAdamW,
    samples: Sequence[Sample],
    request: trainer_pb2.TrainSftRequest,
    max_tokens: int,
) -> Iterator[trainer_pb2.TrainSftResponse]:
    """Steps through the chunk, batch_size examples each. max_tokens: of a micro-batch.

    A step whose gradient is not finite changes nothing and reports its norm as it is.
    """
    size = request.batch_size
    if size < 1:
        raise RequestError(f"batch_size is {size}; it must be at least 1.", field="batch_size")
    for number, start in enumerate(range(0, len(samples), size)):
        began = time.perf_counter()
        batch = list(samples[start : start + size])
        step = request.first_step + number
        rate = learning_rate(request.learning_rate, step)
        num_tokens = sum(sample.num_scored for sample in batch)
        optimizer.zero_grad()
        loss = _accumulate(model, batch, num_tokens, max_tokens)
        result = optimizer.step(request.optimizer, rate)
        yield trainer_pb2.TrainSftResponse(
            step=step,
            loss=loss,
            grad_norm=result.grad_norm,
            learning_rate=rate,
            num_tokens=num_tokens,
            seconds=time.perf_counter() - began,
        )


def _accumulate(model: PolicyModel, batch: list[Sample], num_tokens: int, max_tokens: int) -> float:
    """Gradients of the mean negative log-likelihood; returns the loss over all ranks."""
    total = torch.zeros((), device=model.at.device)

    def loss_of(_: int, scores: Scores) -> torch.Tensor:
        loss = -scores.log_probs.sum() / num_tokens
        total.add_(loss.detach())
        return loss

    _, micros = share_of(batch, batch, model, max_tokens)
    pipeline.accumulate(model, micros, 1.0, loss_of)
    for group in (model.at.data_group, model.at.pipeline_group):
        if group is not None:
            dist.all_reduce(total, group=group)
    return float(total)
