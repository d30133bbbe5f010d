"""What the tests of the experience buffer share: a clock that they move, groups, segments, and a small driver."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crescendo.buffer import Claim, ExperienceBuffer, NewGroup, Scored, Update
from crescendo.common.types import GroupId, Segment, TrajectoryId, TrajectoryState, group_id, trajectory_id
from crescendo.proto.v1 import common_pb2, trainer_pb2

STOP = common_pb2.FINISH_REASON_STOP


class ManualClock:
    """A monotonic clock that moves when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def prompt(name: str = "p0", num_tokens: int = 3) -> common_pb2.Prompt:
    return common_pb2.Prompt(
        prompt_id=name,
        token_ids=range(1, num_tokens + 1),
        domain="math",
        gold_answers=["42"],
        parts=[common_pb2.PromptPart(text="6 * 7?", role="user")],
        metadata={"source": "test"},
    )


def new_group(draw: int = 0, *, samples: int = 2, iteration: int = 1, branch: int = 0) -> NewGroup:
    identity = group_id(branch, iteration, draw)
    return NewGroup(identity, prompt(f"p{draw}"), branch, iteration, "8k", samples)


def ids_of(group: NewGroup) -> list[TrajectoryId]:
    return [trajectory_id(group.group_id, sample) for sample in range(group.num_samples)]


def segment(count: int, *, version: int = 1, iteration: int = 1, start: int = 0) -> Segment:
    tokens = np.arange(start, start + count, dtype=np.int32)
    return Segment(
        weight_version=version,
        iteration=iteration,
        stage="8k",
        branch=0,
        token_ids=tokens,
        log_probs=(-0.5 - tokens / 1000).astype(np.float32),
        loss_mask=tokens % 3 != 1,
    )


def component(raw: float = 1.0) -> common_pb2.RewardComponent:
    return common_pb2.RewardComponent(name="answer", raw=raw, weight=1.0, verdict=common_pb2.VERDICT_CORRECT)


@dataclass
class Driver:
    """A buffer with a controller's fence; each method is one step of a trajectory's life."""

    buffer: ExperienceBuffer
    clock: ManualClock
    fence: common_pb2.Fence

    @classmethod
    async def take_over(cls, buffer: ExperienceBuffer, clock: ManualClock) -> "Driver":
        return cls(buffer, clock, await buffer.acquire_epoch())

    async def open(self, *groups: NewGroup) -> int:
        return (await self.buffer.open_groups(self.fence, groups)).opened

    async def claim(
        self,
        worker: str = "w1",
        *,
        limit: int = 100,
        iteration: int = 1,
        max_spans: int = 0,
        lease_s: float = 2.0,
        wait_s: float = 0.0,
    ) -> list[TrajectoryId]:
        claims = await self.claims(
            worker, limit=limit, iteration=iteration, max_spans=max_spans, lease_s=lease_s, wait_s=wait_s
        )
        return [claim.trajectory.trajectory_id for claim in claims]

    async def claims(
        self,
        worker: str = "w1",
        *,
        limit: int = 100,
        iteration: int = 1,
        max_spans: int = 0,
        lease_s: float = 2.0,
        wait_s: float = 0.0,
    ) -> list[Claim]:
        return await self.buffer.claim(
            self.fence, worker, limit=limit, lease_s=lease_s, iteration=iteration, max_spans=max_spans, wait_s=wait_s
        )

    async def flush(self, *updates: Update, worker: str = "w1") -> list[TrajectoryId]:
        return await self.buffer.flush(self.fence, worker, updates)

    async def park(self, *ids: TrajectoryId, worker: str = "w1") -> None:
        assert await self.flush(*(Update(one, 0, state=TrajectoryState.PARKED) for one in ids), worker=worker) == []

    async def finish(self, *ids: TrajectoryId, tokens: int = 4, version: int = 1, worker: str = "w1") -> None:
        updates = [Update(one, 0, segment(tokens, version=version), TrajectoryState.FINISHED, STOP) for one in ids]
        assert await self.flush(*updates, worker=worker) == []

    async def score(self, *ids: TrajectoryId, raw: float = 1.0) -> list[GroupId]:
        return await self.buffer.score(self.fence, [Scored(one, (component(raw),)) for one in ids])

    async def complete(self, *groups: NewGroup, version: int = 1) -> None:
        """Opens groups and takes them to `complete`."""
        await self.open(*groups)
        ids = [trajectory_id(group.group_id, sample) for group in groups for sample in range(group.num_samples)]
        claimed = await self.claim("finisher", limit=1000, iteration=max(group.iteration for group in groups))
        assert sorted(claimed) == sorted(ids)
        await self.finish(*ids, version=version, worker="finisher")
        await self.buffer.claim_finished(self.fence, limit=1000, wait_s=0)
        assert sorted(await self.score(*ids)) == sorted(group.group_id for group in groups)

    async def tick(self, seconds: float) -> list[TrajectoryId]:
        """Time passes on the controller's clock."""
        self.clock.now_s += seconds
        return await self.buffer.expire_leases(self.fence)

    async def states(self, *ids: TrajectoryId) -> list[str]:
        return [one.state.value for one in await self.buffer.load_trajectories(ids)]

    async def group_state(self, group: GroupId) -> str:
        (loaded,) = await self.buffer.load_groups([group], with_trajectories=False)
        return loaded.state.value


def batch(*groups: NewGroup, iteration: int = 1, branch: int = 0, seed: int = 0) -> trainer_pb2.TrainBatch:
    def members(group: NewGroup) -> Sequence[str]:
        return [trajectory_id(group.group_id, sample) for sample in range(group.num_samples)]

    return trainer_pb2.TrainBatch(
        branch=branch,
        iteration=iteration,
        seed=seed,
        algorithm=trainer_pb2.Algorithm(name="grpo", parameters={"clip_low": 0.2, "clip_high": 0.28}),
        groups=[
            trainer_pb2.TrainGroup(
                group_id=group.group_id, trajectory_ids=members(group), rewards=[1.0] * group.num_samples
            )
            for group in groups
        ],
    )


async def soon(seconds: float = 0.05) -> None:
    await asyncio.sleep(seconds)
