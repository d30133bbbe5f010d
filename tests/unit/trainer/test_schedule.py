"""Learning-rate schedules."""

import pytest

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer.schedule import learning_rate


def rates(steps: int, **settings: float | str) -> list[float]:
    wanted = trainer_pb2.LearningRate(**settings)  # type: ignore[arg-type]
    return [learning_rate(wanted, step) for step in range(steps)]


def test_warmup_reaches_the_peak_then_stays() -> None:
    assert rates(4, peak=1.0, warmup_steps=2, schedule="constant") == [0.5, 1.0, 1.0, 1.0]


def test_linear_decay_after_a_hold_ends_at_its_fraction() -> None:
    made = rates(7, peak=1.0, hold_steps=2, decay_steps=4, final_fraction=0.2, schedule="linear")
    assert made == pytest.approx([1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_half_way_in_the_middle() -> None:
    made = rates(11, peak=2.0, decay_steps=10, final_fraction=0.0, schedule="cosine")
    assert made[5] == pytest.approx(1.0)
    assert made[10] == pytest.approx(0.0)
    assert made == sorted(made, reverse=True)


def test_a_decay_without_length_leaves_the_peak() -> None:
    assert rates(3, peak=1.0, schedule="linear") == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("settings", [{"peak": 1.0, "schedule": "step"}, {"peak": -1.0}, {"peak": float("nan")}])
def test_impossible_schedules_are_refused(settings: dict[str, float | str]) -> None:
    with pytest.raises(RequestError):
        rates(1, **settings)
