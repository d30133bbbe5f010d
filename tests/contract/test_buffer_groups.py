"""How groups end: scored, dropped, recorded, on every implementation of ExperienceBuffer."""

import pytest

from crescendo.buffer import NewGroup, Scored, Update
from crescendo.common.errors import RequestError
from crescendo.common.types import GroupState, TrajectoryId, TrajectoryState
from crescendo.proto.v1 import trainer_pb2
from tests.contract.buffer_cases import STOP, Driver, ManualClock, batch, component, ids_of, new_group, segment


async def test_only_finished_trajectories_are_scored(driver: Driver) -> None:
    group = new_group(samples=2)
    first, second = ids_of(group)
    await driver.open(group)
    await driver.claim(limit=1)
    await driver.finish(first)
    with pytest.raises(RequestError, match="only a finished one"):
        await driver.score(first, second)
    with pytest.raises(RequestError, match="finite"):
        await driver.buffer.score(driver.fence, [Scored(first, (component(float("nan")),))])
    with pytest.raises(RequestError, match="nobody"):
        await driver.score(TrajectoryId("nobody"))
    assert await driver.states(first, second) == ["finished", "pending"]


async def test_unscored_work_is_handed_out_again_to_the_next_controller(driver: Driver, clock: ManualClock) -> None:
    group = new_group(samples=3)
    await driver.open(group)
    a, b, c = await driver.claim()
    await driver.finish(a, b)
    taken = await driver.buffer.claim_finished(driver.fence, limit=9, wait_s=0)
    assert [claim.trajectory.trajectory_id for claim in taken] == [a, b]
    assert await driver.buffer.claim_finished(driver.fence, limit=9, wait_s=0) == []
    await driver.score(a)
    successor = await Driver.take_over(driver.buffer, clock)
    taken = await driver.buffer.claim_finished(successor.fence, limit=9, wait_s=0)
    assert [claim.trajectory.trajectory_id for claim in taken] == [b]
    assert await successor.claim() == [c], "what the old controller's workers held is free"
    assert [one.attempts for one in await driver.buffer.load_trajectories([c])] == [0]


async def test_drops_settle_the_group(driver: Driver) -> None:
    group = new_group(samples=3)
    a, b, c = ids_of(group)
    await driver.open(group)
    await driver.claim(limit=2)
    await driver.finish(a)
    await driver.score(a)
    assert await driver.buffer.drop_trajectory(driver.fence, b, "fault") == []
    for _ in range(2):
        assert await driver.buffer.drop_trajectory(driver.fence, c, "fault") == [group.group_id]
    assert await driver.group_state(group.group_id) == "complete"
    assert await driver.flush(Update(b, 0, segment(1))) == [b]
    assert await driver.claim() == []
    assert await driver.buffer.drop_trajectory(driver.fence, a, "late fault") == [group.group_id]
    (loaded,) = await driver.buffer.load_groups([group.group_id])
    assert loaded.state is GroupState.DROPPED
    assert [one.drop_reason for one in loaded.trajectories] == ["late fault", "fault", "fault"]
    assert loaded.trajectories[0].reward == 1.0, "the evidence stays"


async def test_a_dropped_group_takes_its_trajectories_along(driver: Driver) -> None:
    group, other = new_group(0, samples=3), new_group(1, samples=1)
    await driver.open(group, other)
    a, b, c = ids_of(group)
    await driver.claim(limit=2)
    await driver.finish(a)
    for _ in range(2):
        await driver.buffer.drop_group(driver.fence, group.group_id, "bad prompt")
    assert await driver.states(a, b, c) == ["dropped"] * 3
    assert await driver.claim("w2") == ids_of(other)
    assert await driver.buffer.claim_finished(driver.fence, limit=9, wait_s=0) == []
    (loaded,) = await driver.buffer.load_groups([group.group_id])
    assert loaded.drop_reason == "bad prompt"
    assert await driver.buffer.groups(GroupState.OPEN) == [other.group_id]
    with pytest.raises(RequestError):
        await driver.buffer.drop_group(driver.fence, new_group(9).group_id, "unknown")


async def test_groups_are_listed_oldest_first(driver: Driver) -> None:
    groups = [new_group(draw, samples=1) for draw in (2, 0, 1)]
    await driver.complete(*groups)
    ids = [group.group_id for group in groups]
    assert await driver.buffer.groups(GroupState.COMPLETE) == ids
    assert await driver.buffer.groups(GroupState.COMPLETE, limit=2) == ids[:2]
    with pytest.raises(RequestError):
        await driver.buffer.load_groups([new_group(9).group_id])


async def test_groups_come_without_tokens_but_with_their_numbers(driver: Driver) -> None:
    group = new_group(0, samples=2)
    await driver.open(group)
    a, b = ids_of(group)
    await driver.claim()
    await driver.flush(Update(a, 0, segment(3)))
    await driver.flush(Update(a, 3, segment(2), TrajectoryState.FINISHED, STOP))
    await driver.finish(b)
    await driver.score(a, b, raw=0.5)
    (whole,) = await driver.buffer.load_groups([group.group_id])
    (light,) = await driver.buffer.load_groups([group.group_id], with_tokens=False)
    assert [one.segments for one in light.trajectories] == [(), ()]
    for heavy, one in zip(whole.trajectories, light.trajectories, strict=True):
        assert (one.num_tokens, one.num_segments) == (heavy.num_tokens, heavy.num_segments)
        assert (one.state, one.finish_reason, one.components) == (heavy.state, heavy.finish_reason, heavy.components)
    assert [one.num_segments for one in light.trajectories] == [2, 1]
    assert (await driver.buffer.load_groups([new_group(0).group_id], with_trajectories=False))[0].trajectories == ()


async def test_a_batch_names_groups_once_and_rewards_for_each(driver: Driver) -> None:
    group = new_group()
    await driver.complete(group)
    twice = batch(group, group)
    unequal = batch(group)
    del unequal.groups[0].rewards[0]
    foreign = batch(group)
    foreign.groups[0].trajectory_ids[0] = "stranger"
    for wrong in (trainer_pb2.TrainBatch(iteration=1), twice, unequal, foreign):
        with pytest.raises(RequestError):
            await driver.buffer.record_batch(driver.fence, wrong)
    assert await driver.group_state(group.group_id) == "complete"


async def test_what_a_pause_parked_goes_on_in_the_same_iteration(driver: Driver) -> None:
    await driver.open(new_group(samples=2))
    over_budget, paused = await driver.claim(iteration=1)
    await driver.flush(
        Update(over_budget, 0, segment(3), TrajectoryState.PARKED),
        Update(paused, 0, segment(3), TrajectoryState.PARKED, interrupted=True),
    )
    assert await driver.claim(iteration=1) == [paused]
    assert await driver.claim(iteration=2) == [over_budget]


async def test_a_rewind_restores_the_end_of_an_iteration(driver: Driver) -> None:
    older, newer = new_group(0), new_group(1, iteration=2)
    first, second = ids_of(older)
    await driver.open(older)
    await driver.claim(iteration=1)
    await driver.finish(first)
    await driver.flush(Update(second, 0, segment(3), TrajectoryState.PARKED))
    await driver.buffer.claim_finished(driver.fence, limit=9, wait_s=0)
    await driver.score(first)
    before = await facts(driver, older)

    await driver.open(newer)
    assert await driver.claim(iteration=2) == [second, *ids_of(newer)]
    more = segment(2, version=2, iteration=2, start=3)
    await driver.flush(Update(second, 3, more, TrajectoryState.FINISHED, STOP))
    last = ids_of(newer)[0]
    await driver.flush(Update(last, 0, segment(4, version=2, iteration=2)))
    await driver.buffer.claim_finished(driver.fence, limit=9, wait_s=0)
    assert await driver.score(second) == [older.group_id]

    assert await driver.buffer.rewind(driver.fence, 1) == 6
    assert await driver.buffer.rewind(driver.fence, 1) == 0
    assert await facts(driver, older) == before
    assert await driver.group_state(older.group_id) == "open"
    assert await driver.states(*ids_of(newer)) == ["pending", "pending"]
    counts = await driver.buffer.open_counts(2)
    assert {state: count for state, count in counts.items() if count} == {"pending": 2, "parked": 1, "scored": 1}
    assert await driver.claim(iteration=1) == ids_of(newer)  # what was parked in an iteration rests until the next
    assert await driver.claim(iteration=2) == [second]


async def facts(driver: Driver, group: NewGroup) -> list[object]:
    """Everything that is known of a group's trajectories."""
    found = await driver.buffer.load_trajectories(ids_of(group))
    return [
        (one.state, one.token_ids.tolist(), one.log_probs.tolist(), one.finish_reason, one.spans, one.components)
        for one in found
    ]
