"""What of a batch trains, and what is set aside with which reason."""

from collections.abc import Sequence

import numpy as np
import pytest

from crescendo.common.errors import BufferRefusedError, RequestError
from crescendo.common.types import GroupId, Segment, Trajectory, TrajectoryId, TrajectoryState
from crescendo.proto.v1 import common_pb2, trainer_pb2
from crescendo.trainer.experience import Limits, Prepared, load, prepare, teaches

LIMITS = Limits(max_positions=32, vocab_size=50)


def segment(version: int, count: int = 4, *, token: int = 7, **changes: object) -> Segment:
    fields: dict[str, object] = {
        "weight_version": version,
        "iteration": 1,
        "stage": "s",
        "branch": 0,
        "token_ids": np.full(count, token, dtype=np.int32),
        "log_probs": np.full(count, -1.0, dtype=np.float32),
        "loss_mask": np.ones(count, dtype=np.bool_),
    }
    return Segment(**(fields | changes))  # type: ignore[arg-type]


def trajectory(
    name: str,
    *segments: Segment,
    finish: common_pb2.FinishReason.ValueType = common_pb2.FINISH_REASON_STOP,
    state: TrajectoryState = TrajectoryState.SCORED,
    prompt: Sequence[int] = (1, 2),
) -> Trajectory:
    return Trajectory(
        TrajectoryId(name),
        GroupId("g"),
        np.array(prompt, dtype=np.int32),
        segments or (segment(5),),
        state,
        finish,
        drop_reason="max_spans" if state == TrajectoryState.DROPPED else "",
    )


def prepared(
    trajectories: Sequence[Trajectory], rewards: Sequence[float], *, missing: Sequence[str] = (), **batch: object
) -> Prepared:
    group = trainer_pb2.TrainGroup(
        group_id="g", trajectory_ids=[*(t.trajectory_id for t in trajectories), *missing], rewards=rewards
    )
    wanted = trainer_pb2.TrainBatch(groups=[group], parent_version=5, **batch)  # type: ignore[arg-type]
    return prepare(wanted, {t.trajectory_id: t for t in trajectories}, {}, LIMITS, normalize_std=False)


def test_advantages_and_arrays() -> None:
    made = prepared([trajectory("a"), trajectory("b")], [1.0, 0.0])
    assert [e.advantage for e in made.experiences] == [0.5, -0.5]
    first = made.experiences[0]
    assert first.sample.token_ids.tolist() == [1, 2, 7, 7, 7, 7]
    assert (first.sample.first, first.num_trained, first.old.any()) == (2, 4, False)


def test_equal_rewards_need_no_forward_pass() -> None:
    made = prepared([trajectory("a"), trajectory("b")], [1.0, 1.0])
    assert made.experiences == []
    assert made.num_trajectories == 2
    assert not teaches(trainer_pb2.TrainGroup(rewards=[1.0, 1.0]))
    assert not teaches(trainer_pb2.TrainGroup())
    assert teaches(trainer_pb2.TrainGroup(rewards=[1.0, 0.0]))
    assert teaches(trainer_pb2.TrainGroup(rewards=[1.0, float("nan")]))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (trajectory("bad", segment(5, 0)), "empty response"),
        (trajectory("bad", prompt=()), "empty prompt"),
        (trajectory("bad", segment(5, 40)), "too long: 42 tokens"),
        (trajectory("bad", segment(5, token=50)), "outside the vocabulary of 50"),
        (trajectory("bad", state=TrajectoryState.DROPPED), "dropped: max_spans"),
    ],
)
def test_an_unfit_trajectory_is_set_aside_and_leaves_the_baseline(bad: Trajectory, reason: str) -> None:
    made = prepared([bad, trajectory("a"), trajectory("b")], [1.0, 1.0, 0.0])
    assert [aside.trajectory_id for aside in made.set_aside] == ["bad"]
    assert reason in made.set_aside[0].reason
    assert [e.advantage for e in made.experiences] == [0.5, -0.5]


def test_missing_trajectories_and_bad_rewards_are_set_aside() -> None:
    made = prepared([trajectory("a"), trajectory("b"), trajectory("c")], [1.0, 0.0, float("nan"), 1.0], missing=["d"])
    assert {aside.trajectory_id: aside.reason.split(":")[0] for aside in made.set_aside} == {
        "c": "reward is nan, not a finite number",
        "d": "missing",
    }


def test_cut_responses_are_masked_or_kept() -> None:
    cut = trajectory("cut", finish=common_pb2.FINISH_REASON_LENGTH)
    others = [trajectory("a"), trajectory("b")]
    masked = prepared([cut, *others], [0.0, 1.0, 0.0], truncated="mask")
    assert [e.advantage for e in masked.experiences] == [0.5, -0.5]
    assert masked.num_masked == 1
    kept = prepared([cut, *others], [0.0, 1.0, 0.0], truncated="zero")
    assert [e.advantage for e in kept.experiences] == pytest.approx([-1 / 3, 2 / 3, -1 / 3])


def test_tokens_of_older_weights_are_marked_or_masked() -> None:
    spanning = trajectory("a", segment(3, 2), segment(5, 3))
    made = prepared([spanning, trajectory("b")], [1.0, 0.0])
    assert made.experiences[0].old.tolist() == [True, True, False, False, False]
    assert made.experiences[0].num_trained == 5
    masked = prepared([spanning, trajectory("b")], [1.0, 0.0], old_segments="mask")
    assert masked.experiences[0].num_trained == 3


def test_retraining_under_new_versions_keeps_what_was_on_policy() -> None:
    made = prepared([trajectory("a", segment(3)), trajectory("b", segment(3))], [1.0, 0.0], on_policy_version=3)
    assert not made.experiences[0].old.any()


def test_masked_tokens_and_tool_turns_do_not_train() -> None:
    mask = np.array([True, False, True, True])
    made = prepared(
        [trajectory("a", segment(5, loss_mask=mask), segment(5, 3, tool_turn=True)), trajectory("b")], [1, 0]
    )
    assert made.experiences[0].trained.tolist() == [True, False, True, True, False, False, False]
    nothing = segment(5, loss_mask=np.zeros(4, dtype=np.bool_))
    assert len(prepared([trajectory("a", nothing), trajectory("b")], [1, 0]).experiences) == 1


def test_a_malformed_batch_is_refused() -> None:
    with pytest.raises(RequestError, match="rewards"):
        prepared([trajectory("a")], [1.0, 2.0])
    with pytest.raises(RequestError, match="truncated"):
        prepared([trajectory("a")], [1.0], truncated="half")


class _Source:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def load_trajectories(self, ids: Sequence[TrajectoryId]) -> list[Trajectory]:
        if "broken" in ids:
            raise self.error
        return [trajectory(each) for each in ids]


async def test_a_damaged_trajectory_costs_only_itself() -> None:
    found, reasons = await load(_Source(RequestError("4 bytes of 8")), ["a", "broken", "b"])
    assert sorted(found) == ["a", "b"]
    assert reasons == {"broken": "unreadable: 4 bytes of 8"}


async def test_a_buffer_that_is_away_is_not_a_damaged_trajectory() -> None:
    with pytest.raises(BufferRefusedError):
        await load(_Source(BufferRefusedError("away")), ["a", "broken"])
