"""The ledger on Redis: groups and trajectories change state here, each change by one script."""

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from crescendo.buffer import packing
from crescendo.buffer.client import Argument
from crescendo.buffer.lease_clock import LeaseClock
from crescendo.buffer.protocol import Claim, NewGroup, Scored, Update
from crescendo.buffer.trajectories import Trajectories
from crescendo.common.errors import RequestError, WorkerLostError
from crescendo.common.types import GroupId, TrajectoryId
from crescendo.proto.v1 import common_pb2

_GROUPS_PER_CALL = 64
_UPDATES_PER_CALL = 256
_BYTES_PER_CALL = 8 * 2**20  # a script blocks the server while it runs: keep it to some milliseconds


class Ledger(Trajectories):
    """Opens, leases, advances, scores and drops."""

    _lease_clock: LeaseClock
    _max_attempts: int

    async def open_groups(self, fence: common_pb2.Fence, groups: Sequence[NewGroup]) -> int:
        opened = 0
        for start in range(0, len(groups), _GROUPS_PER_CALL):
            arguments: list[Argument] = []
            for group in groups[start : start + _GROUPS_PER_CALL]:
                check_new_group(group)
                arguments += (group.group_id, group.prompt.prompt_id, group.branch, group.iteration, group.stage)
                arguments += (group.num_samples, group.prompt.SerializeToString())
            opened += await self._client.run("open_groups", fence, *arguments)
        return opened

    async def claim(
        self,
        fence: common_pb2.Fence,
        worker_id: str,
        *,
        limit: int,
        lease_s: float,
        iteration: int,
        max_spans: int,
        wait_s: float = 0.0,
    ) -> list[Claim]:
        if limit < 1:
            return []

        async def attempt() -> list[bytes]:
            rows: list[bytes] = await self._client.run(
                "claim", fence, worker_id, limit, int(1000 * lease_s), iteration, max_spans, self._nonce()
            )
            return rows

        rows = await self._waiting(attempt, self._keys.wake_claim, wait_s)
        return await self._load_leased(rows)

    async def flush(self, fence: common_pb2.Fence, worker_id: str, updates: Sequence[Update]) -> list[TrajectoryId]:
        lost: list[TrajectoryId] = []
        refused: list[tuple[str, int]] = []
        for arguments in _chunks([packing.update_arguments(update) for update in updates]):
            answer = await self._client.run("flush", fence, worker_id, *arguments)
            lost += _ids(answer[0])
            refused += [(answer[1][i].decode(), answer[1][i + 1]) for i in range(0, len(answer[1]), 2)]
        if refused:
            raise packing.refused_updates(refused, updates)
        return lost

    async def expire_leases(self, fence: common_pb2.Fence) -> list[TrajectoryId]:
        try:
            clock_ms, ids = await self._client.run(
                "expire_leases", fence, self._lease_clock.now_ms(), self._max_attempts
            )
        except WorkerLostError:
            self._lease_clock.forget()
            raise
        self._lease_clock.set(clock_ms)
        return _ids(ids)

    async def release_worker(self, fence: common_pb2.Fence, worker_id: str) -> list[TrajectoryId]:
        return _ids(await self._client.run("release_worker", fence, worker_id, self._max_attempts))

    async def claim_finished(self, fence: common_pb2.Fence, *, limit: int, wait_s: float) -> list[Claim]:
        if limit < 1:
            return []

        async def attempt() -> list[bytes]:
            rows: list[bytes] = await self._client.run("claim_finished", fence, limit, self._nonce())
            return rows

        rows = await self._waiting(attempt, self._keys.wake_score, wait_s)
        return await self._load_claims(_ids(rows))

    async def score(self, fence: common_pb2.Fence, scored: Sequence[Scored]) -> list[GroupId]:
        completed: list[GroupId] = []
        packed = [(item.trajectory_id, packing.pack_components(item.trajectory_id, item.components)) for item in scored]
        for arguments in _chunks(packed):
            completed += [GroupId(group.decode()) for group in await self._client.run("score", fence, *arguments)]
        return completed

    async def drop_trajectory(self, fence: common_pb2.Fence, trajectory: TrajectoryId, reason: str) -> list[GroupId]:
        closed = await self._client.run("drop_trajectory", fence, trajectory, reason)
        return [GroupId(group.decode()) for group in closed]

    async def drop_group(self, fence: common_pb2.Fence, group: GroupId, reason: str) -> None:
        await self._client.run("drop_group", fence, group, reason)

    async def counts(self) -> dict[str, int]:
        (counters,) = await self._client.read([("HGETALL", self._keys.counts)])
        return packing.state_counts(counters)

    async def open_counts(self, iteration: int) -> dict[str, int]:
        (counters,) = await self._client.read([("HGETALL", self._keys.open)])
        return packing.open_state_counts(counters, iteration)

    async def _waiting(
        self, attempt: Callable[[], Awaitable[list[bytes]]], wake_key: str, wait_s: float
    ) -> list[bytes]:
        """Claims by script; the wake-up key only says when to try again, so a lost hint costs time, not work."""
        deadline = time.monotonic() + wait_s
        rows = await attempt()
        while not rows and (left_s := deadline - time.monotonic()) > 0:
            await self._client.wait_for_hint(wake_key, left_s)
            rows = await attempt()
        return rows


def check_new_group(group: NewGroup) -> None:
    """Raises RequestError for a group that can't be opened."""
    if group.num_samples < 1:
        raise RequestError(
            f"group {group.group_id} has num_samples {group.num_samples}; it must be at least 1.", field="num_samples"
        )
    if not group.prompt.token_ids:
        raise RequestError(
            f"group {group.group_id} has prompt {group.prompt.prompt_id!r} without tokens.", field="prompt.token_ids"
        )


def _chunks(rows: Sequence[tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Rows flattened into argument lists of bounded length and size."""
    arguments: list[Any] = []
    num_rows = num_bytes = 0
    for row in rows:
        arguments += row
        num_rows += 1
        num_bytes += len(row[-1])
        if num_rows >= _UPDATES_PER_CALL or num_bytes >= _BYTES_PER_CALL:
            yield arguments
            arguments, num_rows, num_bytes = [], 0, 0
    if arguments:
        yield arguments


def _ids(raw: Sequence[bytes]) -> list[TrajectoryId]:
    return [TrajectoryId(identity.decode()) for identity in raw]
