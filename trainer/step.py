"""One step of reinforcement learning: a recorded batch in, changed weights and metrics out.

    load          trajectories from the buffer, advantages from the batch's rewards        experience.py
    reference     log-probabilities under the iterate, of mini-batches after the first     no gradient
    per mini-batch, by micro-batch: forward, objective, backward; then one optimizer step  algorithms/, optimizer.py

The first mini-batch starts at the iterate, so its own forward pass is its reference; with one mini-batch
nothing runs twice. Trajectories whose advantage is negligible run nowhere. Each data-parallel rank takes a share
of each mini-batch balanced by tokens; losses are scaled by the whole mini-batch's counts, so that the summed
gradients are those of a single rank.

Called by trainer/worker.py on every rank with the same batch. Deterministic given weights, batch and layout.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer.algorithms import BatchSize, Objective, Tokens, sequence_scale
from crescendo.trainer.algorithms.importance import token_weights
from crescendo.trainer.experience import Experience, Prepared
from crescendo.trainer.measures import Measures
from crescendo.trainer.megatron import pipeline
from crescendo.trainer.megatron.model import PolicyModel, Scores
from crescendo.trainer.optimizer import FlatAdamW
from crescendo.trainer.packing import MicroBatch
from crescendo.trainer.schedule import learning_rate
from crescendo.trainer.shares import share_of


@dataclass
class StepOutcome:
    """What a step did. num_tokens, num_trajectories: in the loss, over all ranks."""

    metrics: dict[str, float] = field(default_factory=dict)
    num_tokens: int = 0
    num_trajectories: int = 0


@dataclass(frozen=True)
class _Settings:
    batch: trainer_pb2.TrainBatch
    objective: Objective
    temperature: float
    max_tokens: int


def train(
    model: PolicyModel,
    optimizer: FlatAdamW,
    prepared: Prepared,
    batch: trainer_pb2.TrainBatch,
    objective: Objective,
    max_tokens: int,
) -> StepOutcome:
    """Trains one batch. max_tokens: of a micro-batch."""
    started = time.perf_counter()
    settings = _Settings(batch, objective, batch.temperature or 1.0, max_tokens)
    measures = Measures(model.at)
    if batch.reset_optimizer:
        optimizer.reset()
    mini_batches = _mini_batches(prepared.experiences, batch)
    shares = [share_of(mini, [e.sample for e in mini], model, max_tokens) for mini in mini_batches]
    references = [None, *(pipeline.log_probs(model, micros, settings.temperature) for _, micros in shares[1:])]
    measures.seconds("reference", time.perf_counter() - started)
    for number, (mini, (share, micros), reference) in enumerate(zip(mini_batches, shares, references, strict=False)):
        whole = BatchSize(sum(e.num_trained for e in mini), len(mini))
        loss_of = _Loss(model.at.device, share, micros, reference, whole, settings, measures)
        optimizer.zero_grad()
        began = time.perf_counter()
        pipeline.accumulate(model, micros, settings.temperature, loss_of)
        measures.seconds("forward_backward", time.perf_counter() - began)
        _optimize(optimizer, settings, number, measures)
    outcome = StepOutcome(
        metrics=measures.reduced(),
        num_tokens=sum(e.num_trained for e in prepared.experiences),
        num_trajectories=len(prepared.experiences),
    )
    outcome.metrics |= _counts(prepared, outcome, mini_batches)
    return outcome


def _counts(prepared: Prepared, outcome: StepOutcome, mini_batches: list[list[Experience]]) -> dict[str, float]:
    return {
        "num_trained": float(outcome.num_trajectories),
        "num_trajectories": float(prepared.num_trajectories),
        "num_masked": float(prepared.num_masked),
        "num_set_aside": float(len(prepared.set_aside)),
        "num_mini_batches": float(len(mini_batches)),
        "tokens": float(outcome.num_tokens),
        "forward_tokens": float(sum(e.sample.num_inputs for e in prepared.experiences)),
    }


def _mini_batches(experiences: list[Experience], batch: trainer_pb2.TrainBatch) -> list[list[Experience]]:
    """The batch in num_mini_batches random parts of (nearly) equal size; empty parts are dropped."""
    parts = max(1, batch.num_mini_batches)
    if parts == 1:
        return [experiences] if experiences else []
    order = np.random.default_rng(batch.seed).permutation(len(experiences))
    return [[experiences[i] for i in part] for part in np.array_split(order, parts) if len(part)]


@dataclass(frozen=True)
class _Loss:
    """The objective of one micro-batch of a mini-batch; gradients of all add up to the mini-batch's.

    share: this rank's experiences; reference: log-probabilities under the iterate, by micro-batch.
    """

    device: torch.device
    share: list[Experience]
    micros: list[MicroBatch]
    reference: list[torch.Tensor] | None
    whole: BatchSize
    settings: _Settings
    measures: Measures

    def __call__(self, index: int, scores: Scores) -> torch.Tensor:
        members = [self.share[i] for i in self.micros[index].samples]
        if not members:  # only there so that other ranks can use this one's experts
            return scores.log_probs.sum()
        at_iterate = scores.log_probs.detach() if self.reference is None else self.reference[index]
        batch, objective = self.settings.batch, self.settings.objective
        behaviour = _joined([e.behaviour for e in members]).to(self.device)
        old = _joined([e.old for e in members]).to(self.device)
        importance = token_weights(
            at_iterate, behaviour, old, mode=batch.old_segments or "train", cap=batch.importance_cap or 1.0
        )
        tokens = Tokens(
            log_probs=scores.log_probs,
            reference=at_iterate,
            weights=importance * _joined([e.trained for e in members]).to(self.device),
            sample=torch.from_numpy(self.micros[index].sample).to(self.device),
            advantages=torch.tensor([e.advantage for e in members], dtype=torch.float32, device=self.device),
        )
        lengths = torch.tensor([e.num_trained for e in members], device=self.device)
        scale = sequence_scale(objective.aggregation, lengths, self.whole, constant_tokens=objective.constant_tokens)
        loss = (scale * objective.sequence_losses(tokens)).sum()
        with torch.no_grad():
            self.measures.micro_batch(float(loss), tokens, scores.entropies, behaviour, old, objective)
        return loss


def _joined(parts: list[npt.NDArray[Any]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _optimize(optimizer: FlatAdamW, settings: _Settings, number: int, measures: Measures) -> None:
    began = time.perf_counter()
    rate = learning_rate(settings.batch.learning_rate, settings.batch.optimizer_step + number)
    result = optimizer.step(settings.batch.optimizer, rate)
    measures.optimizer_step(result, rate)
    measures.seconds("optimizer", time.perf_counter() - began)
