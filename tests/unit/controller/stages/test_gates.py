"""Gates on curves like DeepScaleR's and the quick start's: when they leave, when they wait, what they say."""

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.config.rl import GateConfig
from crescendo.common.errors import ConfigError
from crescendo.controller.stages import GATES, IterationFacts, Trend, decide

Curve = Callable[[int], float]


def history(
    iterations: int,
    *,
    reward: Curve = lambda i: 0.5,
    length: Curve = lambda i: 100.0,
    clip_ratio: Curve = lambda i: 0.0,
    accuracy: Curve = lambda i: 0.5,
    validate_every: int = 5,
) -> list[IterationFacts]:
    return [
        IterationFacts(i, reward(i), length(i), clip_ratio(i), accuracy(i) if i % validate_every == 0 else None)
        for i in range(iterations)
    ]


def leaves_at(facts: Sequence[IterationFacts], config: GateConfig) -> int | None:
    """The first iteration after which the gate leaves."""
    for end in range(1, len(facts) + 1):
        if decide(facts[:end], config).leave:
            return facts[end - 1].iteration
    return None


def deepscaler_8k(iterations: int = 1600, seed: int = 0) -> list[IterationFacts]:
    """Length falls from 5,500 to 3,500 tokens in about 1000 steps, then rises; the clip ratio 4.2 to 6.5 %."""
    noise = random.Random(seed)
    return history(
        iterations,
        reward=lambda i: 0.46 + 0.12 * min(1.0, i / 1000) + noise.gauss(0, 0.01),
        length=lambda i: (5500 - 2 * i if i < 1000 else 3500 + 1.0 * (i - 1000)) + noise.gauss(0, 40),
        clip_ratio=lambda i: 0.12 - 0.078 * i / 1000 if i < 1000 else 0.042 + 0.023 * (i - 1000) / 300,
        accuracy=lambda i: 0.28 + 0.05 * min(1.0, i / 900) - 0.00002 * max(0, i - 1000) + noise.gauss(0, 0.004),
        validate_every=20,
    )


LENGTH_TURN = GateConfig(
    name="length_turn", min_iterations=100, window=100, smoothing=0.1, min_clip_ratio=0.06, max_accuracy_slope=2e-4,
    min_length_slope=0.1, patience=10, rollback="length_minimum",
)  # fmt: skip
PLATEAU = GateConfig(
    name="plateau", min_iterations=50, window=100, smoothing=0.1, max_accuracy_slope=5e-5, max_reward_slope=5e-5,
    patience=5, rollback="best",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_length_turn_leaves_after_the_turn_and_not_before(seed: int) -> None:
    left = leaves_at(deepscaler_8k(seed=seed), LENGTH_TURN)
    assert left is not None
    # The clip ratio passes 6 % at iteration 1235; smoothing delays the decision a little.
    assert 1235 <= left <= 1330


def test_length_turn_needs_each_of_its_three_conditions() -> None:
    def leaves(**changes: Curve) -> bool:
        curves: dict[str, Curve] = {"length": lambda i: 100.0 + i, "clip_ratio": lambda i: 0.07} | changes
        return leaves_at(history(150, **curves), GateConfig(name="length_turn", window=10)) is not None  # type: ignore[arg-type]

    assert leaves()
    assert not leaves(length=lambda i: 500.0 - i)
    assert not leaves(clip_ratio=lambda i: 0.05)
    assert not leaves(accuracy=lambda i: 0.1 + 0.005 * i)


@pytest.mark.parametrize("seed", range(5))
def test_plateau_leaves_the_16k_stage_when_reward_stops_at_its_level(seed: int) -> None:
    noise = random.Random(seed)
    facts = history(
        800,
        reward=lambda i: 0.58 + 0.045 * min(1.0, i / 400) + noise.gauss(0, 0.004),
        accuracy=lambda i: 0.33 + 0.05 * min(1.0, i / 400) + noise.gauss(0, 0.002),
        validate_every=10,
    )
    left = leaves_at(facts, PLATEAU)
    assert left is not None
    assert 400 <= left <= 560


def test_plateau_waits_while_reward_or_validation_still_rises() -> None:
    config = GateConfig(name="plateau", window=10, max_accuracy_slope=0.001, max_reward_slope=0.001)
    assert leaves_at(history(80, reward=lambda i: 0.002 * i), config) is None
    assert leaves_at(history(80, accuracy=lambda i: 0.002 * i), config) is None
    assert leaves_at(history(80, reward=lambda i: 0.0005 * i), config) == 9


def test_a_value_between_two_validations_is_no_plateau() -> None:
    """Validated every 5 iterations with a window of 3: no window ever holds two validations."""
    config = GateConfig(name="plateau", window=3, max_accuracy_slope=0.001)
    assert leaves_at(history(40, accuracy=lambda i: 0.01 * i), config) is None
    assert leaves_at(history(40), config) == 5


def test_gates_without_validation_wait() -> None:
    for name in ("plateau", "length_turn"):
        facts = [IterationFacts(i, 0.5, 100.0 + i, 0.5) for i in range(50)]
        decision = decide(facts, GateConfig(name=name, window=5))
        assert not decision.leave
        assert "needs 2 validations" in decision.reason
        assert "accuracy" not in decision.facts


def test_patience_wants_the_rule_to_hold_in_a_row() -> None:
    def reward(i: int) -> float:
        return 0.5 if i < 12 else 0.5 + 0.1 * (i - 11)

    flat = GateConfig(name="plateau", window=4, smoothing=1.0, max_reward_slope=0.01, patience=1)
    patient = GateConfig(name="plateau", window=4, smoothing=1.0, max_reward_slope=0.01, patience=10)
    facts = history(13, reward=reward)
    assert leaves_at(facts, flat) == 5
    assert leaves_at(facts, patient) is None
    assert leaves_at(history(30), patient) == 14


def test_min_iterations_holds_every_gate_back() -> None:
    config = GateConfig(name="plateau", window=2, min_iterations=20)
    assert leaves_at(history(40), config) == 19
    assert "fewer than 20" in decide(history(10), config).reason
    assert leaves_at(history(40), GateConfig(name="step", iterations=3, min_iterations=7)) == 6


def test_step_counts_and_manual_never_leaves() -> None:
    assert leaves_at(history(40), GateConfig(name="step", iterations=7)) == 6
    decision = decide(history(40), GateConfig(name="manual"))
    assert not decision.leave
    assert decision.facts["length"] == 100.0


def test_a_decision_carries_the_numbers_that_caused_it() -> None:
    decision = decide(deepscaler_8k()[:1400], LENGTH_TURN)
    assert decision.leave
    assert decision.rollback == "length_minimum"
    assert decision.facts["clip_ratio"] > 0.06
    assert decision.facts["length_slope"] > 0.1
    assert "clip ratio" in decision.reason


def test_an_unknown_gate_is_named() -> None:
    with pytest.raises(ConfigError, match="length_turn"):
        decide([], GateConfig(name="nonsense"))


@pytest.mark.parametrize("name", GATES)
def test_an_empty_history_stays(name: str) -> None:
    assert not decide([], GateConfig(name=name)).leave


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(0, 1e5), st.floats(0, 1), st.none() | st.floats(0, 1)), max_size=40),
    st.integers(2, 12),
    st.floats(0.01, 1),
)
def test_trends_stay_within_their_values_and_are_json(
    rows: list[tuple[float, float, float, float | None]], window: int, smoothing: float
) -> None:
    facts = [IterationFacts(i, *row) for i, row in enumerate(rows)]
    trend = Trend.of(facts, window=window, smoothing=smoothing)
    assert all(math.isfinite(value) for value in trend.as_facts().values())
    if facts:
        lengths = [item.length for item in facts]
        assert min(lengths) - 1e-6 <= trend.length <= max(lengths) + 1e-6
    for name in ("plateau", "length_turn"):
        config = GateConfig(name=name, window=window, smoothing=smoothing)
        assert decide(facts, config) == decide(facts, config)


@given(st.floats(-5, 5), st.floats(-100, 100), st.integers(2, 30))
def test_the_slope_of_a_line_is_its_slope(rise: float, start: float, count: int) -> None:
    facts = [IterationFacts(3 * i, start + rise * 3 * i, 0.0, 0.0) for i in range(count)]
    trend = Trend.of(facts, window=count, smoothing=1.0)
    assert trend.reward_slope == pytest.approx(rise, abs=1e-6)
