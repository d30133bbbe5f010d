"""Reading groups and trajectories from Redis: records, packed segments, prompts."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

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
    trajectory_id,
)
from crescendo.proto.v1 import common_pb2

BYTES_PER_TOKEN = 9
BYTES_PER_CALL = 8 * 2**20
"""A script blocks the server while it runs: this keeps it to some milliseconds."""

_TRAJECTORIES_PER_READ = 64  # of 24K tokens: 14 MB, which the server assembles in some 10 ms
_GROUPS_PER_READ = 16

_Taken: TypeAlias = tuple[int, int, int, int, int, int]


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

    async def load_groups(
        self, ids: Sequence[GroupId], *, with_trajectories: bool = True, with_tokens: bool = True
    ) -> list[Group]:
        loaded: list[Group] = []
        for start in range(0, len(ids), _GROUPS_PER_READ):
            chunk = ids[start : start + _GROUPS_PER_READ]
            rows = await self._client.run("load_groups", None, *chunk)
            groups = [packing.make_group(identity, row) for identity, row in zip(chunk, rows, strict=True)]
            if with_trajectories:
                here = [one for group in groups if not group.archived for one in group.trajectory_ids]
                flat = iter(await self._load_trajectories(here, with_tokens=with_tokens))
                groups = [
                    group
                    if group.archived
                    else dataclasses.replace(group, trajectories=tuple(next(flat) for _ in group.trajectory_ids))
                    for group in groups
                ]
            loaded += groups
        return loaded

    async def load_trajectories(self, ids: Sequence[TrajectoryId]) -> list[Trajectory]:
        return await self._load_trajectories(ids)

    async def _load_trajectories(self, ids: Sequence[TrajectoryId], *, with_tokens: bool = True) -> list[Trajectory]:
        chunks = [
            records.by_group(ids[start : start + _TRAJECTORIES_PER_READ])
            for start in range(0, len(ids), _TRAJECTORIES_PER_READ)
        ]
        return [claim.trajectory for claim in await self._load(chunks, with_tokens=with_tokens)]

    async def load_prompts(self, groups: Sequence[GroupId]) -> list[common_pb2.Prompt]:
        packed = await self._client.read([("HGET", self._keys.payload(group), "prompt") for group in groups])
        for group, found in zip(groups, packed, strict=True):
            if found is None:
                raise RequestError(f"group {group} is unknown or archived.", field="group_id")
        return [common_pb2.Prompt.FromString(found) for found in packed]

    async def _load(
        self, chunks: Iterable[Sequence[tuple[GroupId, Sequence[int]]]], *, with_tokens: bool = True
    ) -> list[Claim]:
        """Trajectories with their prompts; chunks: (group, samples), read in one call each."""
        asked: list[Sequence[tuple[GroupId, Sequence[int]]]] = []

        def calls() -> Iterator[list[Argument]]:
            for runs in chunks:
                asked.append(runs)
                words = [word for group, some in runs for word in (group, len(some), records.pack_numbers(some))]
                yield [int(with_tokens), *words]

        def take(number: int, answer: Sequence[Any]) -> list[Claim]:
            return list(_claims(asked[number], answer))

        loaded = await self._client.run_each("load_trajectories", None, calls(), take)
        return [claim for some in loaded for claim in some]

    async def _load_taken(self, answer: Sequence[bytes]) -> list[Claim]:
        """Claims from claim_finished.lua's answer."""
        taken = list(_bounded(answer))
        wanted = ((self._keys.payload(group), _names(rows)) for group, rows in taken)

        def take(number: int, values: Sequence[bytes | None]) -> list[Claim]:
            return _taken_claims(*taken[number], values)

        return [claim for some in await self._client.fields(wanted, take) for claim in some]

    async def _load_leased(self, answer: Sequence[bytes]) -> list[Claim]:
        """Claims from claim.lua's answer; reads segments only where there are any."""
        claims: list[Claim] = []
        started: list[TrajectoryId] = []
        for i in range(0, len(answer), 3):
            group, prompt = GroupId(answer[i].decode()), _prompt(answer[i + 2])
            for sample, attempts, spans, tokens, _ in records.CLAIMED.iter_unpack(answer[i + 1]):
                identity = trajectory_id(group, sample)
                row = (records.LEASED, 0, attempts, spans, 0, 0, 0, 1)
                trajectory = packing.make_trajectory(identity, group, row, b"", (), prompt.token_ids)
                claims.append(Claim(trajectory, prompt.message))
                if tokens:
                    started.append(identity)
        if not started:
            return claims
        loaded = {one.trajectory_id: one for one in await self.load_trajectories(started)}
        return [Claim(loaded.get(one.trajectory.trajectory_id, one.trajectory), one.prompt) for one in claims]


def _bounded(answer: Sequence[bytes]) -> Iterator[tuple[GroupId, list[_Taken]]]:
    """Members of groups in claim_finished.lua's answer, rows of TAKEN, in parts of bounded size."""
    for i in range(0, len(answer), 2):
        group, part, num_bytes = GroupId(answer[i].decode()), list[_Taken](), 0
        for row in records.TAKEN.iter_unpack(answer[i + 1]):
            if num_bytes > BYTES_PER_CALL:
                yield group, part
                part, num_bytes = [], 0
            part.append(row)
            num_bytes += BYTES_PER_TOKEN * row[4]
        yield group, part


def _names(rows: Sequence[_Taken]) -> list[str]:
    """Fields of a payload: the prompt, then the segments of each sample."""
    return ["prompt", *itertools.chain.from_iterable(_segment_names(row[0], row[5]) for row in rows)]


@functools.lru_cache(maxsize=2**12)
def _segment_names(sample: int, parts: int) -> list[str]:
    return [f"{sample}:{part}" for part in range(parts)]


def _taken_claims(group: GroupId, rows: Sequence[_Taken], values: Sequence[bytes | None]) -> list[Claim]:
    """Claims of one group that is being scored; none when it was dropped and archived meanwhile."""
    if values[0] is None:
        return []
    prompt, at, claims = _prompt(values[0]), 1, []
    for sample, finish, attempts, spans, tokens, parts in rows:
        row = (records.SCORING, finish, attempts, spans, tokens, parts, 0, 1)
        identity, end = trajectory_id(group, sample), at + parts
        made = packing.make_trajectory(identity, group, row, b"", values[at:end], prompt.token_ids)
        claims.append(Claim(made, prompt.message))
        at = end
    return claims


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
            end = at + (row[5] if row[7] else 0) + row[6]
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
