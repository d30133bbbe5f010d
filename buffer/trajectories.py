"""Reading groups and trajectories from Redis: records, packed segments, prompts."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crescendo.buffer import packing, records
from crescendo.buffer.client import Argument
from crescendo.buffer.part import Part
from crescendo.buffer.protocol import Claim
from crescendo.common.errors import RequestError
from crescendo.common.types import (
    Group,
    GroupId,
    GroupState,
    IntArray,
    Trajectory,
    TrajectoryId,
    TrajectoryState,
    trajectory_id,
)
from crescendo.proto.v1 import common_pb2

BYTES_PER_TOKEN = 9
BYTES_PER_CALL = 8 * 2**20
"""A script blocks the server while it runs: this keeps it to some milliseconds."""

_KNOWN_PER_READ = 128  # of known size; the server works on one call while the answer to the last is read
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
            rows = await self._client.run("load_groups", None, *chunk)
            groups = [packing.make_group(identity, row) for identity, row in zip(chunk, rows, strict=True)]
            if with_trajectories:
                here = [one for group in groups if not group.archived for one in group.trajectory_ids]
                flat = iter(await self.load_trajectories(here))
                groups = [
                    group
                    if group.archived
                    else dataclasses.replace(group, trajectories=tuple(next(flat) for _ in group.trajectory_ids))
                    for group in groups
                ]
            loaded += groups
        return loaded

    async def load_trajectories(self, ids: Sequence[TrajectoryId]) -> list[Trajectory]:
        chunks = [
            records.by_group(ids[start : start + _TRAJECTORIES_PER_READ])
            for start in range(0, len(ids), _TRAJECTORIES_PER_READ)
        ]
        return [claim.trajectory for claim in await self._load(chunks)]

    async def load_prompts(self, groups: Sequence[GroupId]) -> list[common_pb2.Prompt]:
        packed = await self._client.read([("HGET", self._keys.payload(group), "prompt") for group in groups])
        for group, found in zip(groups, packed, strict=True):
            if found is None:
                raise RequestError(f"group {group} is unknown or archived.", field="group_id")
        return [common_pb2.Prompt.FromString(found) for found in packed]

    async def _load(self, chunks: Iterable[Sequence[tuple[GroupId, Sequence[int]]]]) -> list[Claim]:
        """Trajectories with their prompts; chunks: (group, samples), read in one call each."""
        asked: list[Sequence[tuple[GroupId, Sequence[int]]]] = []

        def calls() -> Iterator[list[Argument]]:
            for runs in chunks:
                asked.append(runs)
                yield [word for group, some in runs for word in (group, len(some), records.pack_numbers(some))]

        answered = 0

        def take(answer: Sequence[Any]) -> list[Claim]:
            nonlocal answered
            answered += 1
            return list(_claims(asked[(answered - 1) % len(asked)], answer))

        loaded = await self._client.run_each("load_trajectories", None, calls(), take)
        return [claim for some in loaded for claim in some]

    async def _load_taken(self, answer: Sequence[bytes]) -> list[Claim]:
        """Claims from claim_finished.lua's answer."""
        return await self._load(_bounded(answer))

    async def _load_leased(self, answer: Sequence[bytes]) -> list[Claim]:
        """Claims from claim.lua's answer; reads segments only where there are any."""
        claims: list[Claim] = []
        started: list[TrajectoryId] = []
        for i in range(0, len(answer), 3):
            group, prompt = GroupId(answer[i].decode()), _prompt(answer[i + 2])
            for sample, attempts, spans, tokens, _ in records.CLAIMED.iter_unpack(answer[i + 1]):
                identity = trajectory_id(group, sample)
                trajectory = Trajectory(
                    trajectory_id=identity,
                    group_id=group,
                    prompt_token_ids=prompt.token_ids,
                    segments=(),
                    state=TrajectoryState.LEASED,
                    attempts=attempts,
                    spans=spans,
                )
                claims.append(Claim(trajectory, prompt.message))
                if tokens:
                    started.append(identity)
        if not started:
            return claims
        loaded = {one.trajectory_id: one for one in await self.load_trajectories(started)}
        return [Claim(loaded.get(one.trajectory.trajectory_id, one.trajectory), one.prompt) for one in claims]


def _bounded(answer: Sequence[bytes]) -> Iterator[list[tuple[GroupId, list[int]]]]:
    """Members in claim_finished.lua's answer, in parts of bounded length and size."""
    runs: list[tuple[GroupId, list[int]]] = []
    num_bytes = number = 0
    for i in range(0, len(answer), 2):
        group = GroupId(answer[i].decode())
        runs.append((group, []))
        for sample, tokens in records.TAKEN.iter_unpack(answer[i + 1]):
            if num_bytes > BYTES_PER_CALL or number == _KNOWN_PER_READ:
                yield [run for run in runs if run[1]]
                runs, num_bytes, number = [(group, [])], 0, 0
            runs[-1][1].append(sample)
            num_bytes += BYTES_PER_TOKEN * tokens
            number += 1
    if runs:
        yield runs


def _claims(runs: Sequence[tuple[GroupId, Sequence[int]]], answer: Sequence[Any]) -> Iterator[Claim]:
    """Trajectories from load_trajectories.lua's answer."""
    for number, (group, samples) in enumerate(runs):
        rows, reasons, values = answer[3 * number : 3 * number + 3]
        if not rows:
            raise _not_there(group, samples, values[0] if values else None)
        prompt = _prompt(values[0])
        reasons = reasons or itertools.repeat(b"", len(samples))
        at = 1
        for sample, row, reason in zip(samples, records.LOADED.iter_unpack(rows), reasons, strict=True):
            end = at + row[4] + row[5]
            identity = trajectory_id(group, sample)
            yield Claim(
                packing.make_trajectory(identity, group, row, reason, values[at:end], prompt.token_ids), prompt.message
            )
            at = end


def _prompt(packed: bytes) -> Prompt:
    message = common_pb2.Prompt.FromString(packed)
    return Prompt(message, np.array(message.token_ids, dtype=np.int32))


def _not_there(group: GroupId, samples: Sequence[int], archive: bytes | None) -> RequestError:
    """The error for trajectories that the buffer does not have (any more)."""
    if archive:
        return RequestError(
            f"group {group} is archived in {archive.decode()}: it is not in the buffer any more.", field="group_id"
        )
    first = group if samples[0] == records.NOBODY else trajectory_id(group, samples[0])
    others = f" or one of the {len(samples) - 1} after it" if len(samples) > 1 else ""
    return RequestError(f"trajectory {first}{others} is unknown.", field="trajectory_id")
