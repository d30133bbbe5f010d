"""The life of a trajectory, on every implementation of ExperienceBuffer."""

import asyncio
import time

import numpy as np
import pytest

from crescendo.buffer import ExperienceBuffer, NewGroup, Scored, Update
from crescendo.common.errors import RequestError, StaleFenceError
from crescendo.common.types import GroupState, TrajectoryId, TrajectoryState
from crescendo.proto.v1 import common_pb2
from tests.contract.buffer_cases import STOP, Driver, ManualClock, batch, ids_of, new_group, prompt, segment, soon


async def test_a_trajectory_lives_from_pending_to_consumed(driver: Driver) -> None:
    group = new_group(samples=1)
    (one,) = ids_of(group)
    assert await driver.open(group) == 1
    (claim,) = await driver.claims(iteration=1)
    assert claim.prompt == group.prompt
    assert claim.trajectory.state is TrajectoryState.LEASED
    assert claim.trajectory.prompt_token_ids.tolist() == [1, 2, 3]
    assert (claim.trajectory.num_tokens, claim.trajectory.spans) == (0, 1)

    assert await driver.flush(Update(one, 0, segment(5, version=7))) == []
    await driver.flush(Update(one, 5, segment(3, version=7, start=5), TrajectoryState.PARKED))
    (again,) = await driver.claims("w2", iteration=2)
    assert again.trajectory.token_ids.tolist() == list(range(8))
    assert again.trajectory.spans == 2
    await driver.flush(Update(one, 8, segment(2, version=8, start=8), TrajectoryState.FINISHED, STOP), worker="w2")

    (finished,) = await driver.buffer.claim_finished(driver.fence, limit=5, wait_s=0)
    assert finished.trajectory.finish_reason == STOP
    assert await driver.score(one) == [group.group_id]
    await driver.buffer.record_batch(driver.fence, batch(group, iteration=2))
    (loaded,) = await driver.buffer.load_groups([group.group_id])
    assert (loaded.state, loaded.consumed_iteration) == (GroupState.CONSUMED, 2)
    assert (loaded.prompt_id, loaded.stage, loaded.iteration) == ("p0", "8k", 1)
    (kept,) = loaded.trajectories
    assert [part.weight_version for part in kept.segments] == [7, 7, 8]
    assert kept.reward == 1.0
    np.testing.assert_array_equal(kept.token_ids, np.arange(10))
    np.testing.assert_allclose(kept.log_probs, -0.5 - np.arange(10) / 1000, rtol=1e-6)
    np.testing.assert_array_equal(kept.segments[0].loss_mask, np.arange(5) % 3 != 1)
    assert await driver.buffer.load_prompts([group.group_id]) == [group.prompt]


async def test_counters_follow_the_states(driver: Driver) -> None:
    early, late = new_group(0, samples=3), new_group(1, iteration=2, samples=2)
    await driver.open(early, late)
    assert (await driver.buffer.open_counts(1))["pending"] == 3
    claimed = await driver.claim(limit=3)
    await driver.finish(claimed[0])
    await driver.park(claimed[1])
    counts = await driver.buffer.counts()
    assert counts["groups.open"] == 2
    assert {name.split(".")[1]: counts[name] for name in counts if name.startswith("trajectories.")} == {
        "pending": 2,
        "leased": 1,
        "parked": 1,
        "finished": 1,
        "scored": 0,
        "dropped": 0,
    }
    assert await driver.buffer.open_counts(2) == {
        "pending": 2,
        "leased": 1,
        "parked": 1,
        "finished": 1,
        "scored": 0,
        "dropped": 0,
    }
    await driver.buffer.drop_group(driver.fence, early.group_id, "test")
    assert sum((await driver.buffer.open_counts(1)).values()) == 0
    assert (await driver.buffer.open_counts(2))["pending"] == 2
    assert (await driver.buffer.counts())["groups.dropped"] == 1


async def test_repeating_a_change_changes_nothing(driver: Driver) -> None:
    group = new_group(samples=2)
    first, second = ids_of(group)
    assert [await driver.open(group), await driver.open(group)] == [1, 0]
    await driver.claim()
    for _ in range(2):
        assert await driver.flush(Update(first, 0, segment(4))) == []
    for _ in range(2):
        assert await driver.flush(Update(first, 4, segment(2, start=4), TrajectoryState.FINISHED, STOP)) == []
        assert await driver.flush(Update(second, 0, segment(1), TrajectoryState.FINISHED, STOP)) == []
    await driver.buffer.claim_finished(driver.fence, limit=2, wait_s=0)
    assert [await driver.score(first), await driver.score(first)] == [[], []]
    for _ in range(2):
        assert await driver.score(second) == [group.group_id]
        assert await driver.score(first) == []
        assert await driver.flush(Update(second, 0, segment(1), TrajectoryState.FINISHED, STOP)) == []
    assert await driver.score(second, raw=9.0) == [group.group_id]
    for _ in range(2):
        await driver.buffer.record_batch(driver.fence, batch(group))
    (loaded,) = await driver.buffer.load_groups([group.group_id])
    assert [one.num_tokens for one in loaded.trajectories] == [6, 1]
    assert [one.reward for one in loaded.trajectories] == [1.0, 1.0]
    assert (await driver.buffer.counts())["trajectories.scored"] == 2


async def test_claims_come_parked_first_then_in_order_of_opening(driver: Driver) -> None:
    old, young = new_group(0, samples=3), new_group(1, samples=2)
    await driver.open(old, young)
    a, b, c = ids_of(old)
    assert await driver.claim(limit=2) == [a, b]
    await driver.park(b)
    await driver.park(a)
    assert await driver.claim(limit=9, iteration=2) == [a, b, c, *ids_of(young)]


async def test_over_budget_rests_until_the_next_iteration(driver: Driver) -> None:
    group = new_group(samples=1)
    await driver.open(group)
    await driver.park(*await driver.claim(iteration=3))
    assert await driver.claim(iteration=3) == []
    assert await driver.claim(iteration=4) == ids_of(group)


async def test_work_that_a_pause_interrupted_goes_on_in_the_same_iteration(driver: Driver) -> None:
    group = new_group(samples=1)
    (one,) = ids_of(group)
    await driver.open(group)
    await driver.claim(iteration=3)
    update = Update(one, 0, segment(2), TrajectoryState.PARKED, interrupted=True)
    assert [await driver.flush(update), await driver.flush(update)] == [[], []]
    (claim,) = await driver.claims("w2", iteration=3)
    assert (claim.trajectory.num_tokens, claim.trajectory.spans) == (2, 1)


async def test_a_lost_worker_does_not_cost_the_iteration(driver: Driver) -> None:
    group = new_group(samples=2)
    await driver.open(group)
    first, second = await driver.claim()
    await driver.flush(Update(first, 0, segment(5)))
    assert sorted(await driver.buffer.release_worker(driver.fence, "w1")) == [first, second]
    assert await driver.buffer.release_worker(driver.fence, "w1") == []
    claims = await driver.claims("w2")
    assert [claim.trajectory.trajectory_id for claim in claims] == [first, second]
    assert [claim.trajectory.num_tokens for claim in claims] == [5, 0]
    assert [(claim.trajectory.spans, claim.trajectory.attempts) for claim in claims] == [(1, 1), (1, 1)]
    assert await driver.flush(Update(first, 5, segment(1, start=5))) == [first]
    assert await driver.flush(Update(first, 5, segment(1, start=5)), worker="w2") == []


async def test_leases_expire_on_the_controllers_clock(driver: Driver) -> None:
    group = new_group(samples=2)
    await driver.open(group)
    first, second = await driver.claim(lease_s=3)
    assert await driver.tick(2) == []
    assert await driver.flush(Update(first, 0)) == []
    assert await driver.tick(2) == [second]
    assert await driver.tick(2) == [first]
    assert await driver.states(first, second) == ["parked", "parked"]
    assert await driver.flush(Update(first, 0), Update(second, 0)) == [first, second]
    assert await driver.claim("w2") == [first, second]


async def test_a_long_silence_of_the_controller_expires_no_fresh_lease(driver: Driver) -> None:
    await driver.open(new_group(samples=1))
    await driver.claim(lease_s=60)
    assert await driver.tick(100_000) == []


async def test_the_third_lost_lease_drops(driver: Driver) -> None:
    group = new_group(samples=2)
    lost, other = ids_of(group)
    await driver.open(group)
    for attempt in range(3):
        assert await driver.claim(f"w{attempt}", limit=1) == [lost]
        await driver.buffer.release_worker(driver.fence, f"w{attempt}")
    (kept,) = await driver.buffer.load_trajectories([lost])
    assert (kept.state, kept.drop_reason, kept.attempts) == (TrajectoryState.DROPPED, "attempts", 3)
    assert await driver.claim() == [other]
    await driver.finish(other)
    assert await driver.score(other) == [group.group_id]


async def test_max_spans_drops(driver: Driver) -> None:
    group = new_group(samples=1)
    (one,) = ids_of(group)
    await driver.open(group)
    for iteration in (1, 2):
        assert await driver.claim(iteration=iteration, max_spans=2) == [one]
        await driver.flush(Update(one, 3 * (iteration - 1), segment(3)), Update(one, 0, state=TrajectoryState.PARKED))
    assert await driver.claim(iteration=3, max_spans=2) == []
    (kept,) = await driver.buffer.load_trajectories([one])
    assert (kept.state, kept.drop_reason, kept.num_tokens) == (TrajectoryState.DROPPED, "max_spans", 6)
    assert await driver.group_state(group.group_id) == "dropped"
    assert sum((await driver.buffer.open_counts(9)).values()) == 0


async def test_offsets_that_do_not_fit_are_refused_by_themselves(driver: Driver) -> None:
    group = new_group(samples=3)
    a, b, c = ids_of(group)
    await driver.open(group)
    await driver.claim()
    await driver.flush(Update(a, 0, segment(4)), Update(b, 0, segment(4)))
    with pytest.raises(RequestError, match=f"{a} holds 4 tokens, the update starts at 5"):
        await driver.flush(Update(a, 5, segment(1)), Update(c, 0, segment(2)))
    with pytest.raises(RequestError, match="holds 4 tokens, the update starts at 2"):
        await driver.flush(Update(b, 2, segment(5)))
    with pytest.raises(RequestError, match="nobody is unknown"):
        await driver.flush(Update(TrajectoryId("nobody"), 0))
    assert await driver.flush(Update(a, 1, segment(2))) == []
    loaded = await driver.buffer.load_trajectories([a, b, c])
    assert [one.num_tokens for one in loaded] == [4, 4, 2]


def test_segments_that_cannot_be_trained_on_are_not_made() -> None:
    good = segment(3)
    with pytest.raises(RequestError, match="lengths"):
        type(good)(1, 1, "8k", 0, good.token_ids, good.log_probs[:2], good.loss_mask)
    with pytest.raises(RequestError, match="NaN"):
        type(good)(1, 1, "8k", 0, good.token_ids, good.log_probs * np.float32("nan"), good.loss_mask)


@pytest.mark.parametrize(
    "update",
    [
        Update(TrajectoryId("x"), -1),
        Update(TrajectoryId("x"), 0, state=TrajectoryState.SCORED),
        Update(TrajectoryId("x"), 0, state=TrajectoryState.FINISHED),
        Update(TrajectoryId("x"), 0, finish_reason=STOP),
        Update(TrajectoryId("x"), 0, interrupted=True),
    ],
)
async def test_updates_that_make_no_sense_are_refused(driver: Driver, update: Update) -> None:
    with pytest.raises(RequestError):
        await driver.flush(update)


async def test_groups_that_make_no_sense_are_refused(driver: Driver) -> None:
    group = new_group()
    with pytest.raises(RequestError, match="num_samples"):
        await driver.open(NewGroup(group.group_id, prompt(), 0, 1, "8k", 0))
    with pytest.raises(RequestError, match="without tokens"):
        await driver.open(NewGroup(group.group_id, prompt(num_tokens=0), 0, 1, "8k", 1))
    assert await driver.buffer.groups(GroupState.OPEN) == []


async def test_stale_fences_change_nothing(driver: Driver, clock: ManualClock) -> None:
    old = driver.fence
    group = new_group(samples=1)
    await driver.open(group)
    driver.fence = await driver.buffer.advance_fence(old)
    assert (driver.fence.epoch, driver.fence.counter) == (old.epoch, old.counter + 1)
    successor = await Driver.take_over(driver.buffer, clock)
    assert successor.fence.epoch == old.epoch + 1
    for stale in (old, driver.fence, common_pb2.Fence()):
        for call in changes(driver.buffer, stale, group):
            with pytest.raises(StaleFenceError):
                await call
    for stale in (old, driver.fence):
        with pytest.raises(StaleFenceError):
            await driver.buffer.acquire_epoch(stale)
    renewed = await driver.buffer.acquire_epoch(successor.fence)
    assert (renewed.epoch, renewed.counter) == (successor.fence.epoch + 1, 0)
    assert await driver.states(*ids_of(group)) == ["pending"]


def changes(buffer: ExperienceBuffer, fence: common_pb2.Fence, group: NewGroup) -> list:  # type: ignore[type-arg]
    """Every change, as a call that a stale fence must refuse."""
    (one,) = ids_of(group)
    return [
        buffer.advance_fence(fence),
        buffer.open_groups(fence, [new_group(5)]),
        buffer.claim(fence, "w", limit=1, lease_s=1, iteration=1, max_spans=0),
        buffer.flush(fence, "w", [Update(one, 0)]),
        buffer.expire_leases(fence),
        buffer.release_worker(fence, "w"),
        buffer.claim_finished(fence, limit=1, wait_s=0),
        buffer.score(fence, [Scored(one, ())]),
        buffer.drop_trajectory(fence, one, "x"),
        buffer.drop_group(fence, group.group_id, "x"),
        buffer.record_batch(fence, batch(group)),
        buffer.commit(fence, 0, 1, "m"),
        buffer.open_branch(fence, parent=0, from_iteration=0, drop_partials=True),
        buffer.next_version(fence, parent=0, branch=0, iteration=0),
        buffer.register_weights(fence, common_pb2.WeightManifest(version=1)),
    ]


async def test_waiting_ends_when_work_arrives(driver: Driver) -> None:
    group = new_group(samples=2)
    waits = [asyncio.create_task(driver.claim(f"w{i}", limit=1, wait_s=10)) for i in range(2)]
    await soon()
    started = time.monotonic()
    await driver.open(group)
    claimed = sorted(one for claimed in await asyncio.gather(*waits) for one in claimed)
    assert claimed == ids_of(group), "one hint wakes one worker, who passes it on"
    scoring = asyncio.create_task(driver.buffer.claim_finished(driver.fence, limit=9, wait_s=10))
    await soon()
    worker = (await driver.buffer.load_trajectories(claimed))[0]
    assert worker.state is TrajectoryState.LEASED
    for name in ("w0", "w1"):
        await driver.flush(
            *(Update(one, 0, segment(1), TrajectoryState.FINISHED, STOP) for one in claimed), worker=name
        )
    assert len(await scoring) >= 1
    assert time.monotonic() - started < 5


async def test_waiting_is_bounded(driver: Driver) -> None:
    started = time.monotonic()
    assert await driver.claim(wait_s=0.2) == []
    assert await driver.buffer.claim_finished(driver.fence, limit=1, wait_s=0.2) == []
    assert 0.35 < time.monotonic() - started < 3
