"""Objectives against hand-computed values and finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer.algorithms import BatchSize, Tokens, objective, sequence_scale
from crescendo.trainer.algorithms.advantages import group_advantages
from crescendo.trainer.algorithms.grpo import Grpo
from crescendo.trainer.algorithms.importance import token_weights
from crescendo.trainer.algorithms.mirror_descent import MirrorDescent


def tokens(log_probs: list[float], reference: list[float], advantages: list[float], sample: list[int]) -> Tokens:
    return Tokens(
        log_probs=torch.tensor(log_probs, dtype=torch.float64, requires_grad=True),
        reference=torch.tensor(reference, dtype=torch.float64),
        weights=torch.ones(len(log_probs), dtype=torch.float64),
        sample=torch.tensor(sample),
        advantages=torch.tensor(advantages, dtype=torch.float64),
    )


def test_mirror_descent_by_hand() -> None:
    # Sequence 0: log pi = -3, log ratio = 0.5; sequence 1: log pi = -1, log ratio = -0.25.
    given_tokens = tokens([-1.0, -2.0, -1.0], [-1.25, -2.25, -0.75], [0.5, -0.5], [0, 0, 1])
    losses = MirrorDescent(tau=2.0).sequence_losses(given_tokens)
    assert losses.tolist() == pytest.approx([1.5 + 0.25, -0.5 + 0.0625])


def test_mirror_descent_gradient_is_that_of_the_squared_surrogate() -> None:
    """Eq. 3 equals the gradient of (r - mean r - tau l)^2 / (2 tau), l the sequence's log ratio (methods of k1.5)."""
    tau = 0.7
    rng = torch.Generator().manual_seed(1)
    log_probs = -torch.rand(6, dtype=torch.float64, generator=rng)
    reference = -torch.rand(6, dtype=torch.float64, generator=rng)
    sample = torch.tensor([0, 0, 0, 1, 1, 1])
    advantages = torch.tensor([0.5, -0.5], dtype=torch.float64)

    def surrogate(values: torch.Tensor) -> float:
        ratio = torch.zeros(2, dtype=torch.float64).index_add(0, sample, values - reference)
        return float(((advantages - tau * ratio) ** 2 / (2 * tau)).sum())

    leaf = log_probs.clone().requires_grad_()
    given_tokens = Tokens(leaf, reference, torch.ones(6, dtype=torch.float64), sample, advantages)
    MirrorDescent(tau=tau).sequence_losses(given_tokens).sum().backward()
    step = 1e-6
    for index in range(6):
        nudge = torch.zeros(6, dtype=torch.float64)
        nudge[index] = step
        numeric = (surrogate(log_probs + nudge) - surrogate(log_probs - nudge)) / (2 * step)
        assert leaf.grad is not None
        assert float(leaf.grad[index]) == pytest.approx(numeric, abs=1e-7)


def test_mirror_descent_at_the_iterate_is_policy_gradient() -> None:
    given_tokens = tokens([-1.0, -2.0], [-1.0, -2.0], [0.25], [0, 0])
    MirrorDescent(tau=100.0).sequence_losses(given_tokens).sum().backward()
    assert given_tokens.log_probs.grad is not None
    assert given_tokens.log_probs.grad.tolist() == [-0.25, -0.25]


def test_grpo_by_hand() -> None:
    # Ratios 2 (clipped at 1.28 for A > 0), 0.5 (not clipped for A > 0), 0.5 (clipped at 0.8 for A < 0), 2.
    ratios = [math.log(2), math.log(0.5), math.log(0.5), math.log(2)]
    given_tokens = tokens(ratios, [0.0] * 4, [1.0, -1.0], [0, 0, 1, 1])
    grpo = Grpo(clip_low=0.2, clip_high=0.28)
    assert grpo.sequence_losses(given_tokens).tolist() == pytest.approx([-(1.28 + 0.5), 0.8 + 2.0])
    assert grpo.clipped(given_tokens).tolist() == [True, False, True, False]


def test_grpo_clipped_tokens_carry_no_gradient() -> None:
    given_tokens = tokens([math.log(2), 0.0], [0.0, 0.0], [1.0], [0, 0])
    Grpo(clip_low=0.2, clip_high=0.28).sequence_losses(given_tokens).sum().backward()
    assert given_tokens.log_probs.grad is not None
    assert given_tokens.log_probs.grad.tolist() == [0.0, -1.0]


@pytest.mark.parametrize("made", [MirrorDescent(tau=1.0), Grpo(clip_low=0.2, clip_high=0.28)])
def test_tokens_of_weight_zero_do_not_train(made: MirrorDescent | Grpo) -> None:
    given_tokens = tokens([-1.0, -2.0], [-1.1, -2.1], [1.0], [0, 0])
    masked = Tokens(
        given_tokens.log_probs,
        given_tokens.reference,
        torch.tensor([1.0, 0.0], dtype=torch.float64),
        given_tokens.sample,
        given_tokens.advantages,
    )
    made.sequence_losses(masked).sum().backward()
    assert given_tokens.log_probs.grad is not None
    assert given_tokens.log_probs.grad[1] == 0.0
    assert given_tokens.log_probs.grad[0] != 0.0


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", [1 / 8, 1 / 8]),
        ("sequence_mean", [1 / 2, 1 / 2]),
        ("sequence_token_mean", [1 / 4, 1 / 12]),
        ("sequence_sum_constant", [1 / 200, 1 / 200]),
    ],
)
def test_aggregations(aggregation: str, expected: list[float]) -> None:
    scale = sequence_scale(aggregation, torch.tensor([2, 6]), BatchSize(8, 2), constant_tokens=100)
    assert scale.tolist() == pytest.approx(expected)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=10), st.data())
def test_aggregation_does_not_depend_on_how_a_mini_batch_is_cut(lengths: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(lengths)))
    whole = BatchSize(sum(lengths), len(lengths))
    for aggregation in ("token_mean", "sequence_mean", "sequence_token_mean"):
        joined = sequence_scale(aggregation, torch.tensor(lengths), whole).tolist()
        parts = [
            sequence_scale(aggregation, torch.tensor(part, dtype=torch.int64), whole).tolist()
            for part in (lengths[:cut], lengths[cut:])
        ]
        assert joined == parts[0] + parts[1]


def test_sum_over_a_constant_needs_the_constant() -> None:
    with pytest.raises(RequestError, match="constant_tokens"):
        sequence_scale("sequence_sum_constant", torch.tensor([1]), BatchSize(1, 1))


def test_advantages_by_hand() -> None:
    everyone = np.ones(4, dtype=bool)
    rewards = np.array([1.0, 0.0, 0.0, 1.0])
    assert group_advantages(rewards, everyone).tolist() == [0.5, -0.5, -0.5, 0.5]
    scaled = group_advantages(rewards, everyone, normalize_std=True)
    assert scaled.tolist() == pytest.approx([1.0, -1.0, -1.0, 1.0], abs=1e-3)


def test_left_out_responses_take_no_part_in_the_baseline() -> None:
    counted = np.array([True, True, False, False])
    assert group_advantages(np.array([1.0, 0.0, 0.0, 0.0]), counted).tolist() == [0.5, -0.5, 0.0, 0.0]
    assert group_advantages(np.array([1.0]), np.array([False])).tolist() == [0.0]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=16), st.booleans())
def test_advantages_sum_to_zero_and_equal_rewards_teach_nothing(rewards: list[float], normalize: bool) -> None:
    counted = np.ones(len(rewards), dtype=bool)
    assert abs(group_advantages(np.array(rewards), counted, normalize_std=normalize).sum()) < 1e-6
    same = group_advantages(np.full(len(rewards), 0.25), counted, normalize_std=normalize)
    assert same.tolist() == [0.0] * len(rewards)


def test_importance_weights() -> None:
    iterate = torch.tensor([0.0, 0.0, 0.0], requires_grad=True)
    behaviour = torch.tensor([-2.0, 1.0, -2.0])
    old = torch.tensor([True, True, False])
    weights = token_weights(iterate, behaviour, old, mode="train", cap=2.0)
    assert weights.tolist() == pytest.approx([2.0, math.exp(-1.0), 1.0])
    assert not weights.requires_grad
    assert token_weights(iterate, behaviour, old, mode="mask", cap=2.0).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "wanted",
    [
        trainer_pb2.Algorithm(name="ppo"),
        trainer_pb2.Algorithm(name="mirror_descent", parameters={"tau": 0.0}),
        trainer_pb2.Algorithm(name="mirror_descent", options={"aggregation": "sequence_sum_constant"}),
        trainer_pb2.Algorithm(name="grpo", parameters={"clip_low": 1.5}),
        trainer_pb2.Algorithm(name="grpo", options={"aggregation": "mean"}),
    ],
)
def test_impossible_parameters_are_refused(wanted: trainer_pb2.Algorithm) -> None:
    with pytest.raises(RequestError):
        objective(wanted)


def test_parameters_reach_the_objective() -> None:
    made = objective(
        trainer_pb2.Algorithm(
            name="grpo",
            parameters={"clip_low": 0.1, "clip_high": 0.3, "normalize_std": 0.0, "constant_tokens": 9.0},
            options={"aggregation": "sequence_sum_constant"},
        )
    )
    assert made == Grpo(0.1, 0.3, "sequence_sum_constant", normalize_std=False, constant_tokens=9.0)
