"""Reading groups and trajectories from Redis: hashes, packed segments, prompts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crescendo.buffer import packing
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

_TRAJECTORIES_PER_READ = 64  # of 24K tokens: 14 MB, which the server assembles in some 10 ms
_GROUPS_PER_READ = 16


@dataclass(frozen=True)
class Prompt:
    """A prompt with its tokens as an array, [P]; shared by the trajectories of a group."""

    message: common_pb2.Prompt
    token_ids: IntArray


class Trajectories(Part):
    """Reads; changes nothing."""

    async def groups(self, state: GroupState, *, limit: int = 0) -> list[GroupId]:
        ids = await self._client.list_ids(self._keys.groups(state.value), limit)
        return [GroupId(identity.decode()) for identity in ids]

    async def load_groups(self, ids: Sequence[GroupId], *, with_trajectories: bool = True) -> list[Group]:
        loaded: list[Group] = []
        for start in range(0, len(ids), _GROUPS_PER_READ):
            chunk = ids[start : start + _GROUPS_PER_READ]
            hashes = await self._client.read([("HGETALL", self._keys.group(identity)) for identity in chunk])
            if not with_trajectories:
                loaded += [packing.make_group(identity, fields) for identity, fields in zip(chunk, hashes, strict=True)]
                continue
            members = [
                () if b"archived" in fields else packing.member_ids(identity, fields)
                for identity, fields in zip(chunk, hashes, strict=True)
            ]
            flat = iter(await self.load_trajectories([member for group in members for member in group]))
            loaded += [
                packing.make_group(identity, fields, [next(flat) for _ in group])
                for identity, fields, group in zip(chunk, hashes, members, strict=True)
            ]
        return loaded

    async def load_trajectories(self, ids: Sequence[TrajectoryId]) -> list[Trajectory]:
        return [claim.trajectory for claim in await self._load_claims(ids)]

    async def load_prompts(self, groups: Sequence[GroupId]) -> list[common_pb2.Prompt]:
        prompts = await self._prompts(groups)
        return [prompts[group].message for group in groups]

    async def _load_claims(self, ids: Sequence[TrajectoryId]) -> list[Claim]:
        """Trajectories with their prompts."""
        loaded: list[Claim] = []
        for start in range(0, len(ids), _TRAJECTORIES_PER_READ):
            chunk = ids[start : start + _TRAJECTORIES_PER_READ]
            rows = await self._client.run("load_trajectories", None, *chunk)
            for identity, row in zip(chunk, rows, strict=True):
                if not row:
                    raise RequestError(f"trajectory {identity} is unknown or archived.", field="trajectory_id")
            prompts = await self._prompts(GroupId(row[0].decode()) for row in rows)
            for identity, row in zip(chunk, rows, strict=True):
                prompt = prompts[GroupId(row[0].decode())]
                loaded.append(Claim(packing.make_trajectory(identity, row, prompt.token_ids), prompt.message))
        return loaded

    async def _load_leased(self, rows: Sequence[Any]) -> list[Claim]:
        """Claims from claim.lua's rows; reads tokens only where there are any."""
        leased = [
            _Leased(TrajectoryId(rows[i].decode()), GroupId(rows[i + 1].decode()), *rows[i + 2 : i + 5])
            for i in range(0, len(rows), 5)
        ]
        started = await self._load_claims([row.identity for row in leased if row.tokens > 0])
        segments = {claim.trajectory.trajectory_id: claim.trajectory.segments for claim in started}
        prompts = await self._prompts(row.group for row in leased)
        return [
            Claim(
                row.trajectory(prompts[row.group].token_ids, segments.get(row.identity, ())),
                prompts[row.group].message,
            )
            for row in leased
        ]

    async def _prompts(self, groups: Iterable[GroupId]) -> dict[GroupId, Prompt]:
        distinct = list(dict.fromkeys(groups))
        packed = await self._client.read([("GET", self._keys.prompt(group)) for group in distinct])
        prompts: dict[GroupId, Prompt] = {}
        for group, found in zip(distinct, packed, strict=True):
            if found is None:
                raise RequestError(f"group {group} is unknown or archived.", field="group_id")
            message = common_pb2.Prompt.FromString(found)
            prompts[group] = Prompt(message, np.array(message.token_ids, dtype=np.int32))
        return prompts


@dataclass(frozen=True)
class _Leased:
    """A row of claim.lua's answer."""

    identity: TrajectoryId
    group: GroupId
    attempts: int
    spans: int
    tokens: int

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
