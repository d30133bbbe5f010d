"""Reading groups and trajectories from Redis: hashes, packed segments, prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crescendo.buffer import packing
from crescendo.buffer.client import Argument
from crescendo.buffer.part import Part
from crescendo.buffer.protocol import Claim
from crescendo.common.errors import RequestError
from crescendo.common.types import (
    Group,
    GroupId,
    GroupState,
    IntArray,
    Segment,
    Trajectory,
    TrajectoryId,
    TrajectoryState,
)
from crescendo.proto.v1 import common_pb2

_GROUPS_PER_READ = 16  # bounds what one pipeline holds: 16 groups of 16 trajectories of 24K tokens are 55 MB


class Trajectories(Part):
    """Reads; changes nothing."""

    async def groups(self, state: GroupState, *, limit: int = 0) -> list[GroupId]:
        (ids,) = await self._client.read([("ZRANGE", self._keys.groups(state.value), 0, limit - 1)])
        return [GroupId(identity.decode()) for identity in ids]

    async def load_groups(self, ids: Sequence[GroupId], *, with_trajectories: bool = True) -> list[Group]:
        loaded: list[Group] = []
        for start in range(0, len(ids), _GROUPS_PER_READ):
            chunk = ids[start : start + _GROUPS_PER_READ]
            hashes = await self._client.read([("HGETALL", self._keys.group(identity)) for identity in chunk])
            if not with_trajectories:
                loaded += [packing.make_group(identity, fields) for identity, fields in zip(chunk, hashes, strict=True)]
                continue
            members = [packing.member_ids(identity, fields) for identity, fields in zip(chunk, hashes, strict=True)]
            flat = iter(await self.load_trajectories([member for group in members for member in group]))
            loaded += [
                packing.make_group(identity, fields, [next(flat) for _ in group])
                for identity, fields, group in zip(chunk, hashes, members, strict=True)
            ]
        return loaded

    async def load_trajectories(self, ids: Sequence[TrajectoryId]) -> list[Trajectory]:
        return [trajectory for trajectory, _ in await self._load_with_prompts(ids)]

    async def load_prompts(self, groups: Sequence[GroupId]) -> list[common_pb2.Prompt]:
        prompts = await self._prompts(groups)
        return [prompts[group] for group in groups]

    async def _load_with_prompts(self, ids: Sequence[TrajectoryId]) -> list[tuple[Trajectory, common_pb2.Prompt]]:
        commands: list[tuple[Argument, ...]] = []
        for identity in ids:
            commands += [
                ("HGETALL", self._keys.trajectory(identity)),
                ("LRANGE", self._keys.segments(identity), 0, -1),
                ("GET", self._keys.components(identity)),
            ]
        answers = await self._client.read(commands)
        hashes = answers[0::3]
        for identity, fields in zip(ids, hashes, strict=True):
            if not fields:
                raise RequestError(f"trajectory {identity} is unknown.", field="trajectory_id")
        groups = [GroupId(fields[b"group"].decode()) for fields in hashes]
        prompts = await self._prompts(groups)
        rows = zip(ids, hashes, groups, answers[1::3], answers[2::3], strict=True)
        return [
            (packing.make_trajectory(identity, fields, prompts[group], segments, components), prompts[group])
            for identity, fields, group, segments, components in rows
        ]

    async def _load_leased(self, rows: Sequence[Any]) -> list[Claim]:
        """Claims from claim.lua's rows; reads only what the script does not return."""
        leased = [_Leased.from_row(rows[i : i + 5]) for i in range(0, len(rows), 5)]
        started = [row.identity for row in leased if row.tokens > 0]
        lists = await self._client.read([("LRANGE", self._keys.segments(identity), 0, -1) for identity in started])
        segments = {
            identity: packing.unpack_segments(identity, packed) for identity, packed in zip(started, lists, strict=True)
        }
        prompts = await self._prompts([row.group for row in leased])
        token_ids = {group: np.array(prompt.token_ids, dtype=np.int32) for group, prompt in prompts.items()}
        return [
            Claim(row.trajectory(token_ids[row.group], segments.get(row.identity, ())), prompts[row.group])
            for row in leased
        ]

    async def _prompts(self, groups: Iterable[GroupId]) -> dict[GroupId, common_pb2.Prompt]:
        distinct = list(dict.fromkeys(groups))
        packed = await self._client.read([("GET", self._keys.prompt(group)) for group in distinct])
        for group, found in zip(distinct, packed, strict=True):
            if found is None:
                raise RequestError(f"group {group} is unknown.", field="group_id")
        return {group: common_pb2.Prompt.FromString(found) for group, found in zip(distinct, packed, strict=True)}


@dataclass(frozen=True)
class _Leased:
    """A row of claim.lua's answer."""

    identity: TrajectoryId
    group: GroupId
    attempts: int
    spans: int
    tokens: int

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> "_Leased":
        return cls(TrajectoryId(row[0].decode()), GroupId(row[1].decode()), int(row[2]), int(row[3]), int(row[4]))

    def trajectory(self, prompt_token_ids: IntArray, segments: tuple[Segment, ...]) -> Trajectory:
        return Trajectory(
            trajectory_id=self.identity,
            group_id=self.group,
            prompt_token_ids=prompt_token_ids,
            segments=segments,
            state=TrajectoryState.LEASED,
            attempts=self.attempts,
            spans=self.spans,
        )
