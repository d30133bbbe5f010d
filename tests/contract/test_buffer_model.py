"""Random sequences of operations on MemoryBuffer and RedisBuffer: both must answer and end up alike.

MemoryBuffer serves as the model. An operation that one refuses, the other must refuse with the same type.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crescendo.buffer import ExperienceBuffer, MemoryBuffer, NewGroup, Scored, Update, connect
from crescendo.common.errors import CrescendoError
from crescendo.common.types import GroupState, TrajectoryId, TrajectoryState, trajectory_id
from crescendo.proto.v1 import common_pb2
from tests.contract.buffer_cases import STOP, ManualClock, batch, component, new_group, segment

_runs = itertools.count()

GROUPS = [new_group(draw, samples=2, iteration=1 + draw % 2) for draw in range(4)]
TRAJECTORIES = [trajectory_id(group.group_id, sample) for group in GROUPS for sample in range(2)]
WORKERS = ("w1", "w2")

a_group = st.sampled_from(GROUPS)
a_trajectory = st.sampled_from(TRAJECTORIES)
an_iteration = st.integers(1, 3)
a_state = st.sampled_from([TrajectoryState.LEASED, TrajectoryState.PARKED, TrajectoryState.FINISHED])


@dataclass(frozen=True)
class Operation:
    """name: for Hypothesis's report; call: what is done to a buffer with a fence."""

    name: str
    call: Callable[[ExperienceBuffer, common_pb2.Fence, ManualClock], Awaitable[Any]] = field(repr=False)


def opened(group: NewGroup) -> Operation:
    return Operation(f"open {group.group_id}", lambda buffer, fence, _: buffer.open_groups(fence, [group]))


def claimed(worker: str, limit: int, iteration: int, max_spans: int) -> Operation:
    async def call(buffer: ExperienceBuffer, fence: common_pb2.Fence, _: ManualClock) -> list[tuple[str, int, int]]:
        claims = await buffer.claim(
            fence, worker, limit=limit, lease_s=2, iteration=iteration, max_spans=max_spans, wait_s=0
        )
        found = [claim.trajectory for claim in claims]
        return [(one.trajectory_id, one.num_tokens, one.spans) for one in found]

    return Operation(f"claim {worker} {limit} at {iteration}, max_spans {max_spans}", call)


def flushed(worker: str, one: TrajectoryId, offset: int, count: int, state: TrajectoryState, version: int) -> Operation:
    reason = STOP if state is TrajectoryState.FINISHED else common_pb2.FINISH_REASON_UNSPECIFIED
    made = segment(count, version=version, start=offset) if count else None
    interrupted = state is TrajectoryState.PARKED and version == 1
    update = Update(one, offset, made, state, reason, interrupted)
    return Operation(
        f"flush {worker} {one}[{offset}:+{count}] {state} v{version}",
        lambda buffer, fence, _: buffer.flush(fence, worker, [update]),
    )


def passed(seconds: float) -> Operation:
    async def call(buffer: ExperienceBuffer, fence: common_pb2.Fence, clock: ManualClock) -> list[TrajectoryId]:
        clock.now_s += seconds
        return await buffer.expire_leases(fence)

    return Operation(f"{seconds} s pass", call)


def released(worker: str) -> Operation:
    async def call(buffer: ExperienceBuffer, fence: common_pb2.Fence, _: ManualClock) -> list[TrajectoryId]:
        return sorted(await buffer.release_worker(fence, worker))

    return Operation(f"release {worker}", call)


def handed_out(limit: int) -> Operation:
    async def call(buffer: ExperienceBuffer, fence: common_pb2.Fence, _: ManualClock) -> list[TrajectoryId]:
        claims = await buffer.claim_finished(fence, limit=limit, wait_s=0)
        return [claim.trajectory.trajectory_id for claim in claims]

    return Operation(f"hand out {limit} for scoring", call)


def scored(one: TrajectoryId, raw: float) -> Operation:
    return Operation(
        f"score {one} {raw}", lambda buffer, fence, _: buffer.score(fence, [Scored(one, (component(raw),))])
    )


def dropped(one: TrajectoryId) -> Operation:
    return Operation(f"drop {one}", lambda buffer, fence, _: buffer.drop_trajectory(fence, one, "test"))


def group_dropped(group: NewGroup) -> Operation:
    return Operation(f"drop {group.group_id}", lambda buffer, fence, _: buffer.drop_group(fence, group.group_id, "bad"))


def recorded(group: NewGroup, iteration: int, branch: int) -> Operation:
    made = batch(group, iteration=iteration, branch=branch)
    return Operation(
        f"record {group.group_id} at {branch}:{iteration}", lambda buffer, fence, _: buffer.record_batch(fence, made)
    )


def committed(iteration: int, branch: int) -> Operation:
    return Operation(
        f"commit {branch}:{iteration}", lambda buffer, fence, _: buffer.commit(fence, branch, iteration, "m")
    )


def branched(parent: int, iteration: int, drop_partials: bool) -> Operation:
    return Operation(
        f"branch from {parent}:{iteration}",
        lambda buffer, fence, _: buffer.open_branch(
            fence, parent=parent, from_iteration=iteration, drop_partials=drop_partials
        ),
    )


def versioned(branch: int, iteration: int) -> Operation:
    return Operation(
        f"version at {branch}:{iteration}",
        lambda buffer, fence, _: buffer.next_version(fence, parent=0, branch=branch, iteration=iteration),
    )


def completed(group: NewGroup) -> Operation:
    """A group's whole way, so that random sequences reach consumption often."""

    async def call(buffer: ExperienceBuffer, fence: common_pb2.Fence, _: ManualClock) -> list[Any]:
        answers: list[Any] = [await buffer.open_groups(fence, [group])]
        claims = await buffer.claim(fence, "w3", limit=9, lease_s=2, iteration=group.iteration, max_spans=0)
        ids = [claim.trajectory.trajectory_id for claim in claims]
        ends = [Update(one, 0, None, TrajectoryState.FINISHED, STOP) for one in ids]
        answers.append(await buffer.flush(fence, "w3", ends))
        answers.append(await buffer.score(fence, [Scored(one, (component(),)) for one in ids]))
        return answers

    return Operation(f"complete {group.group_id}", call)


operations = st.one_of(
    st.builds(opened, a_group),
    st.builds(completed, a_group),
    st.builds(claimed, st.sampled_from(WORKERS), st.integers(1, 4), an_iteration, st.integers(0, 2)),
    st.builds(
        flushed,
        st.sampled_from(WORKERS),
        a_trajectory,
        st.integers(0, 4),
        st.integers(0, 3),
        a_state,
        st.integers(1, 3),
    ),
    st.builds(passed, st.sampled_from([0.5, 1.5, 4.0])),
    st.builds(released, st.sampled_from(WORKERS)),
    st.builds(handed_out, st.integers(1, 3)),
    st.builds(scored, a_trajectory, st.sampled_from([0.0, 1.0])),
    st.builds(dropped, a_trajectory),
    st.builds(group_dropped, a_group),
    st.builds(recorded, a_group, an_iteration, st.integers(0, 1)),
    st.builds(committed, an_iteration, st.integers(0, 1)),
    st.builds(branched, st.integers(0, 1), st.integers(0, 2), st.booleans()),
    st.builds(versioned, st.integers(0, 1), an_iteration),
    st.just(Operation("take over", lambda buffer, fence, clock: buffer.acquire_epoch())),
).map(lambda operation: operation)  # or Hypothesis reports the arguments of the makers instead of the names


async def outcome(operation: Operation, buffer: ExperienceBuffer, fence: common_pb2.Fence, clock: ManualClock) -> Any:
    """The answer, or the type of the error."""
    try:
        return await operation.call(buffer, fence, clock)
    except CrescendoError as error:
        return type(error)


async def contents(buffer: ExperienceBuffer) -> dict[str, Any]:
    """Everything that a reader can see."""
    seen: dict[str, Any] = {"counts": await buffer.counts(), "committed": await buffer.committed()}
    for state in GroupState:
        seen[state.value] = ids = await buffer.groups(state)
        for group in await buffer.load_groups(ids):
            seen[group.group_id] = (group.branch, group.consumed_iteration, group.drop_reason)
            for one in group.trajectories:
                seen[one.trajectory_id] = (one.state, one.token_ids.tolist(), one.log_probs.tolist(), one.reward)
                seen[one.trajectory_id] += (one.finish_reason, one.attempts, one.spans, one.drop_reason)
    seen["open_counts"] = [await buffer.open_counts(iteration) for iteration in (0, 1, 2, 3)]
    seen["redo"] = [await buffer.batches_after(branch, -1) for branch in (0, 1, 2)]
    seen["versions"] = [(one.version, one.branch, one.iteration) for one in await buffer.lineage()]
    return seen


def check_counts(seen: dict[str, Any]) -> None:
    """The counters are what a count of the trajectories gives."""
    found = Counter(seen[one][0].value for one in TRAJECTORIES if one in seen)
    counts = seen["counts"]
    assert {state.value: counts[f"trajectories.{state.value}"] for state in TrajectoryState} == {
        state.value: found[state.value] for state in TrajectoryState
    }
    assert all(counts[f"groups.{state.value}"] == len(seen[state.value]) for state in GroupState)


async def compare(url: str, sequence: list[Operation]) -> None:
    clocks = (ManualClock(), ManualClock())
    memory = MemoryBuffer(monotonic=clocks[0])
    redis = await connect(url, f"model-{next(_runs)}", monotonic=clocks[1])
    try:
        fence = await memory.acquire_epoch()
        assert await redis.acquire_epoch() == fence
        for operation in sequence:
            expected = await outcome(operation, memory, fence, clocks[0])
            assert await outcome(operation, redis, fence, clocks[1]) == expected, operation.name
            if isinstance(expected, common_pb2.Fence):
                fence = expected
        expected = await contents(memory)
        assert await contents(redis) == expected
        check_counts(expected)
    finally:
        await redis.close()


@given(sequence=st.lists(operations, min_size=5, max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_buffers_agree(buffer_url: str, sequence: list[Operation]) -> None:
    asyncio.run(compare(buffer_url, sequence))


@pytest.mark.parametrize("seed", range(4))
def test_both_buffers_agree_over_long_runs(buffer_url: str, seed: int) -> None:
    """Hypothesis prefers short sequences; these go deep."""
    draw = random.Random(seed)
    asyncio.run(compare(buffer_url, [likely(draw) for _ in range(400)]))


def likely(draw: random.Random) -> Operation:
    """An operation of the kind that moves work forward, seldom one that throws it away."""
    one, group, worker = draw.choice(TRAJECTORIES), draw.choice(GROUPS), draw.choice(WORKERS)
    iteration, branch, version = draw.randint(1, 3), draw.randint(0, 1), draw.randint(1, 3)
    if draw.random() < 0.03:
        return draw.choice([released(worker), dropped(one), branched(0, iteration, draw.random() < 0.5)])
    state = draw.choice([TrajectoryState.LEASED, TrajectoryState.PARKED, TrajectoryState.FINISHED])
    return draw.choice(
        [
            opened(group),
            claimed(worker, draw.randint(1, 3), iteration, 0),
            flushed(worker, one, 2 * draw.randint(0, 2), 2, state, version),
            flushed(worker, one, 2 * draw.randint(0, 2), 2, TrajectoryState.FINISHED, version),
            passed(0.3),
            handed_out(2),
            scored(one, 1.0),
            recorded(group, iteration, branch),
            versioned(branch, iteration),
        ]
    )
