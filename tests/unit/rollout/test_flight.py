"""Where a trajectory ends, and what is flushed of it."""

import math

import numpy as np
import pytest

from crescendo.buffer.protocol import Claim
from crescendo.common.types import GroupId, Segment, Trajectory, TrajectoryId, TrajectoryState
from crescendo.proto.v1 import common_pb2, rollout_pb2
from crescendo.rollout.flight import Flight

GOING_ON = common_pb2.FINISH_REASON_UNSPECIFIED
LENGTH = common_pb2.FINISH_REASON_LENGTH
STOP = common_pb2.FINISH_REASON_STOP


def segment(count: int, iteration: int) -> Segment:
    return Segment(
        weight_version=1,
        iteration=iteration,
        stage="a",
        branch=0,
        token_ids=np.arange(count, dtype=np.int32),
        log_probs=np.zeros(count, dtype=np.float32),
        loss_mask=np.ones(count, dtype=np.bool_),
    )


def flight(
    *segments: Segment, budget: int = 0, limit: int = 100, longest: int = 1000, rule: tuple[int, int, int] = (0, 0, 0)
) -> Flight:
    prompt = np.asarray([1, 2, 3], dtype=np.int32)
    trajectory = Trajectory(TrajectoryId("t"), GroupId("g"), prompt, segments, TrajectoryState.LEASED)
    begin = rollout_pb2.BeginRequest(
        iteration=7,
        weight_version=5,
        stage="a",
        max_response_tokens=limit,
        token_budget=budget,
        repetition=common_pb2.RepetitionRule(ngram_tokens=rule[0], window_tokens=rule[1], count=rule[2]),
    )
    claim = Claim(trajectory, common_pb2.Prompt(token_ids=[1, 2, 3]))
    return Flight(claim, begin, request_id="t#1", max_sequence_tokens=longest, decode=None, now_s=0.0)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (flight(), 100),
        (flight(budget=30), 30),
        (flight(segment(80, 6), budget=30), 20),
        (flight(segment(80, 6)), 20),
        (flight(segment(10, 7), budget=30), 20),  # made in this iteration by an engine that died
        (flight(longest=50), 47),
        (flight(segment(100, 6)), 0),
    ],
)
def test_may_generate_what_limit_budget_and_model_leave(made: Flight, expected: int) -> None:
    assert made.max_tokens == expected


def test_budget_used_up_parks_and_limit_reached_finishes() -> None:
    parked = flight(budget=2)
    parked.take([4, 5], [-1.0, -1.0], LENGTH)
    assert (parked.state, parked.finish_reason) == (TrajectoryState.PARKED, GOING_ON)
    finished = flight(segment(98, 6), budget=2)
    finished.take([4, 5], [-1.0, -1.0], LENGTH)
    assert (finished.state, finished.finish_reason) == (TrajectoryState.FINISHED, LENGTH)


def test_end_of_sequence_finishes() -> None:
    made = flight()
    assert made.take([4, 42], [-1.0, -0.5], STOP) is False
    assert (made.state, made.finish_reason, made.num_tokens) == (TrajectoryState.FINISHED, STOP, 2)


def test_repetition_ends_it_drops_what_follows_and_asks_to_free_the_engine() -> None:
    made = flight(rule=(2, 16, 3))
    assert made.take([7, 7], [-1.0, -1.0], GOING_ON) is False
    assert made.take([7, 7, 7], [-1.0, -1.0, -1.0], GOING_ON) is True
    assert made.finish_reason == common_pb2.FINISH_REASON_REPEAT
    assert made.num_tokens == 3


def test_updates_carry_each_token_once_at_its_offset() -> None:
    made = flight(segment(10, 6))
    made.take([4, 5], [-1.0, -2.0], GOING_ON)
    first = made.update()
    made.take([6], [-3.0], STOP)
    made.flushed(first, 1.0)
    second = made.update()
    assert first.segment is not None
    assert second.segment is not None
    assert (first.offset, first.segment.token_ids.tolist(), first.state) == (10, [4, 5], TrajectoryState.LEASED)
    assert (second.offset, second.segment.token_ids.tolist(), second.state) == (12, [6], TrajectoryState.FINISHED)
    assert second.segment.log_probs.tolist() == [-3.0]
    assert (second.segment.weight_version, second.segment.iteration, second.segment.stage) == (5, 7, "a")


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_log_prob_that_is_no_number_sets_the_trajectory_aside(bad: float) -> None:
    made = flight()
    assert made.take([4], [bad], GOING_ON) is True
    assert made.state == TrajectoryState.DROPPED
    assert made.num_tokens == 0
