"""A rollout phase when things go wrong: buffer away, lease lost, engine dead, a newer controller."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from crescendo.buffer import Claim, MemoryBuffer, NewGroup, Update
from crescendo.common.errors import DeadlineError, RequestError, StaleFenceError, WorkerLostError
from crescendo.common.types import GroupId, Trajectory, TrajectoryId, TrajectoryState, group_id, trajectory_id
from crescendo.proto.v1 import common_pb2, rollout_pb2
from crescendo.rollout.engine import EngineSettings, EngineThread
from crescendo.rollout.engine.base import EngineOutput, Output
from crescendo.rollout.engine.scripted import ScriptedEngine
from crescendo.rollout.phase import RolloutPhase

WORKER = "rollout-0"


class UnsteadyBuffer(MemoryBuffer):
    """Fails as it is told to, before or after the change was made."""

    def __init__(self) -> None:
        super().__init__()
        self.flush_failures: list[Exception] = []
        self.answers_to_lose = 0
        self.flushes: list[Sequence[Update]] = []

    async def claim(self, *arguments: Any, **keywords: Any) -> list[Claim]:
        return await super().claim(*arguments, **keywords)

    async def flush(self, fence: common_pb2.Fence, worker_id: str, updates: Sequence[Update]) -> list[TrajectoryId]:
        if self.flush_failures:
            raise self.flush_failures.pop(0)
        lost = await super().flush(fence, worker_id, updates)
        self.flushes.append(updates)
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            raise WorkerLostError("the answer was lost")
        return lost


class Rig:
    """A scripted engine, a buffer, and phases over them."""

    def __init__(self, **options: str) -> None:
        settings = EngineSettings(
            model_path="",
            max_sequence_tokens=256,
            vocabulary_size=43,
            eos_token_ids=(42,),
            options={f"scripted.{name}": value for name, value in options.items()},
        )
        self.engine = EngineThread(lambda: ScriptedEngine(settings))
        self.buffer = UnsteadyBuffer()
        self.phases: list[RolloutPhase] = []
        self.troubles: list[str] = []

    async def start(self) -> None:
        await self.engine.start(10)
        self.fence = await self.buffer.acquire_epoch()

    async def open(self, samples: int, iteration: int = 1) -> list[TrajectoryId]:
        identity = group_id(0, iteration, 0)
        prompt = common_pb2.Prompt(prompt_id="p", token_ids=[1, 2, 3], domain="math")
        await self.buffer.open_groups(self.fence, [NewGroup(identity, prompt, 0, iteration, "a", samples)])
        return [trajectory_id(GroupId(identity), sample) for sample in range(samples)]

    def begin(self, **fields: Any) -> RolloutPhase:
        settings: dict[str, Any] = {
            "iteration": 1,
            "max_response_tokens": 100,
            "max_concurrency": 8,
            "flush_tokens": 4,
            "flush_seconds": 1.0,
            "lease_seconds": 30.0,
            **fields,
        }
        sampling = common_pb2.Sampling(temperature=1.0, top_p=1.0)
        request = rollout_pb2.BeginRequest(fence=self.fence, stage="a", weight_version=1, sampling=sampling, **settings)
        phase = RolloutPhase(self.engine, self.buffer, WORKER, request, on_trouble=self.troubles.append)
        self.phases.append(phase)
        phase.start()
        return phase

    async def found(self, ids: Sequence[TrajectoryId]) -> list[Trajectory]:
        return await self.buffer.load_trajectories(ids)

    async def stop(self) -> None:
        for phase in self.phases:
            await phase.close()
        await self.engine.stop(5)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig(lengths="fixed:40", step_s="0.002")
    await made.start()
    yield made
    await made.stop()


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


def is_drained(phase: RolloutPhase) -> bool:
    return bool(phase.progress.drained)


async def test_buffer_that_is_away_for_a_while_costs_no_token(rig: Rig) -> None:
    ids = await rig.open(4)
    rig.buffer.flush_failures = [WorkerLostError("away"), ConnectionError("away"), WorkerLostError("away")]
    phase = rig.begin()
    await until(lambda: bool(rig.troubles))
    assert "away" in phase.trouble
    assert not phase.progress.drained
    await until(lambda: is_drained(phase))
    await phase.pause(5)
    assert rig.troubles[-1] == ""
    assert {(one.state, one.num_tokens) for one in await rig.found(ids)} == {(TrajectoryState.FINISHED, 40)}


async def test_lost_answers_append_nothing_twice(rig: Rig) -> None:
    ids = await rig.open(3)
    rig.buffer.answers_to_lose = 2
    phase = rig.begin()
    await until(lambda: is_drained(phase))
    await phase.pause(5)
    assert rig.buffer.answers_to_lose == 0
    assert [one.num_tokens for one in await rig.found(ids)] == [40, 40, 40]


async def test_pause_gives_up_at_its_deadline_and_a_second_one_succeeds(rig: Rig) -> None:
    ids = await rig.open(2)
    phase = rig.begin(flush_tokens=0)
    await until(lambda: phase.progress.num_tokens >= 20)
    rig.buffer.flush_failures = [WorkerLostError("away")] * 2
    with pytest.raises(DeadlineError, match="not flushed yet"):
        await phase.pause(0.05)
    await phase.pause(10)
    found = await rig.found(ids)
    assert {one.state for one in found} == {TrajectoryState.PARKED}
    assert sum(one.num_tokens for one in found) == phase.progress.num_tokens


async def test_lost_lease_ends_the_work_here(rig: Rig) -> None:
    ids = await rig.open(2)
    phase = rig.begin(iteration=1)
    await until(lambda: phase.progress.num_running == 2)
    await rig.buffer.release_worker(rig.fence, WORKER)
    taken = await rig.buffer.claim(rig.fence, "other", limit=2, lease_s=30, iteration=1, max_spans=0)
    assert {one.trajectory.trajectory_id for one in taken} == set(ids)
    await until(lambda: is_drained(phase))
    assert (phase.progress.num_finished, phase.progress.num_parked) == (0, 0)
    before = [one.num_tokens for one in await rig.found(ids)]
    await phase.pause(5)
    assert [one.num_tokens for one in await rig.found(ids)] == before
    assert not rig.engine.progress_age_s


async def test_newer_controller_ends_the_phase_without_another_write(rig: Rig) -> None:
    await rig.open(2)
    phase = rig.begin()
    await until(lambda: phase.progress.num_running == 2)
    await rig.buffer.acquire_epoch()
    await until(lambda: phase.error is not None)
    assert isinstance(phase.error, StaleFenceError)
    await phase.pause(5)
    assert phase.progress.num_running == 0


async def test_refused_trajectory_is_set_aside_and_the_rest_goes_on(rig: Rig) -> None:
    ids = await rig.open(2)
    phase = rig.begin(flush_tokens=0)
    await until(lambda: phase.progress.num_running == 2)
    rig.buffer.flush_failures = [RequestError("refused"), RequestError("refused")]
    await until(lambda: is_drained(phase))
    await phase.pause(5)
    states = sorted(one.state for one in await rig.found(ids))
    assert states == [TrajectoryState.DROPPED, TrajectoryState.FINISHED]


async def test_leases_are_renewed_while_nothing_is_flushed(rig: Rig) -> None:
    await rig.open(1)
    phase = rig.begin(flush_tokens=0, flush_seconds=60.0, lease_seconds=0.09)
    await until(lambda: is_drained(phase))
    states = [update.state for updates in rig.buffer.flushes for update in updates]
    assert states.count(TrajectoryState.LEASED) >= 1
    assert states[-1] == TrajectoryState.FINISHED


async def test_flushes_are_shared_by_many_trajectories(rig: Rig) -> None:
    await rig.open(64)
    phase = rig.begin(flush_tokens=0, max_concurrency=64)
    await until(lambda: is_drained(phase))
    assert len(rig.buffer.flushes) < 16


async def test_dead_engine_parks_what_it_generated() -> None:
    rig = Rig(lengths="fixed:40", die_at_step="20")
    await rig.start()
    ids = await rig.open(3)
    phase = rig.begin(flush_tokens=0)
    await until(lambda: phase.error is not None)
    assert isinstance(phase.error, WorkerLostError)
    await phase.pause(5)
    found = await rig.found(ids)
    assert {(one.state, one.num_tokens) for one in found} == {(TrajectoryState.PARKED, 20)}
    await rig.stop()


async def test_log_prob_that_is_no_number_drops_the_trajectory_only() -> None:
    rig = Rig(lengths="fixed:10")

    class Faulty(ScriptedEngine):
        def step(self) -> list[Output]:
            outputs = super().step()
            return [
                one._replace(log_probs=[float("nan")])
                if isinstance(one, EngineOutput) and "s000" in one.request_id
                else one
                for one in outputs
            ]

    settings = EngineSettings(model_path="", max_sequence_tokens=256, vocabulary_size=43, eos_token_ids=(42,))
    rig.engine = EngineThread(lambda: Faulty(settings))
    await rig.start()
    ids = await rig.open(2)
    phase = rig.begin()
    await until(lambda: is_drained(phase))
    await phase.pause(5)
    first, second = await rig.found(ids)
    assert (first.state, first.drop_reason) == (TrajectoryState.DROPPED, "non_finite_log_prob")
    assert second.state == TrajectoryState.FINISHED
    await rig.stop()
