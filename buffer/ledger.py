"""The ledger on Redis: groups and trajectories change state here, each change by one script."""

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from crescendo.buffer import packing, records
from crescendo.buffer.client import Argument
from crescendo.buffer.lease_clock import LeaseClock
from crescendo.buffer.protocol import Admission, Claim, NewGroup, Scored, Update
from crescendo.buffer.trajectories import BYTES_PER_CALL, BYTES_PER_TOKEN, Trajectories
from crescendo.common.errors import BufferRefusedError, RequestError, WorkerLostError
from crescendo.common.types import GroupId, TrajectoryId, TrajectoryState
from crescendo.proto.v1 import common_pb2

log = logging.getLogger(__name__)

_GROUPS_PER_CALL = 64
_WATERMARK = 0.95  # of maxmemory: queues, records and replies need some too
_LONGEST_LEASE_MS = 2**32 - 1  # what a record's column holds: seven weeks
_ITEMS_PER_CALL = 256  # each call that writes is an fsync; more would let the server wait for the client


class Ledger(Trajectories):
    """Opens, leases, advances, scores and drops."""

    _lease_clock: LeaseClock
    _max_attempts: int
    _budget_bytes: int

    async def open_groups(self, fence: common_pb2.Fence, groups: Sequence[NewGroup]) -> Admission:
        opened = 0
        refused: list[GroupId] = []
        for start in range(0, len(groups), _GROUPS_PER_CALL):
            chunk = groups[start : start + _GROUPS_PER_CALL]
            if refused:
                refused += [group.group_id for group in chunk]
                continue
            arguments: list[Argument] = [await self._free_bytes()]
            for group in chunk:
                check_new_group(group)
                arguments += (group.group_id, group.prompt.prompt_id, group.branch, group.iteration, group.stage)
                arguments += (group.num_samples, group.max_response_tokens, group.prompt.SerializeToString())
            answer = await self._client.run("open_groups", fence, *arguments)
            opened += answer[0]
            refused += [GroupId(identity.decode()) for identity in answer[1]]
        if refused and not opened and not (await self.counts())["groups.open"]:
            raise BufferRefusedError(
                f"the buffer has no memory for a single group: {refused[0]} is refused, and none is open.",
                field="buffer.max_memory_mib",
                fix="Raise the server's `maxmemory`, let the archiver catch up, or make responses shorter.",
            )
        return Admission(opened, tuple(refused))

    async def _free_bytes(self) -> int:
        """Bytes that open trajectories may still come to need; -1: no limit is known."""
        memory: dict[str, Any] = await self._client.retrying(lambda: self._client.redis.info("memory"))
        free = []
        if (most := int(memory["maxmemory"])) > 0:
            free.append(
                int(_WATERMARK * most) - int(memory["used_memory"]) + int(memory.get("mem_not_counted_for_evict", 0))
            )
        if self._budget_bytes > 0:
            (stored,) = await self._client.read([("HGET", self._keys.counts, "bytes")])
            free.append(self._budget_bytes - int(stored or 0))
        return max(0, min(free)) if free else -1

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
                "claim",
                fence,
                worker_id,
                limit,
                min(int(1000 * lease_s), _LONGEST_LEASE_MS),
                iteration,
                max_spans,
                self._nonce(),
            )
            return rows

        rows = await self._waiting(attempt, self._keys.wake_claim, wait_s)
        return await self._undamaged(fence, await self._load_leased(rows))

    async def flush(self, fence: common_pb2.Fence, worker_id: str, updates: Sequence[Update]) -> list[TrajectoryId]:
        for update in updates:
            packing.check_update(update)  # all of them, before anything is sent
        chunks = list(_chunks(updates))

        def calls() -> Iterator[list[Argument]]:
            for chunk in chunks:
                groups, rows, segments = packing.pack_updates(chunk)
                yield [worker_id, len(groups), len(chunk), rows, *groups, *segments]

        answers: list[tuple[list[int], list[int]]] = await self._client.run_each(
            "flush", fence, calls(), lambda _, answer: tuple(answer)
        )
        lost: list[TrajectoryId] = []
        refused: list[tuple[Update, int]] = []
        for chunk, (gone, misfits) in zip(chunks, answers, strict=True):
            lost += [chunk[number].trajectory_id for number in gone]
            refused += [(chunk[misfits[i]], misfits[i + 1]) for i in range(0, len(misfits), 2)]
        if refused:
            raise packing.refused_updates(refused, len(updates))
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
        return await self._undamaged(fence, await self._load_taken(rows))

    async def score(self, fence: common_pb2.Fence, scored: Sequence[Scored]) -> list[GroupId]:
        for item in scored:
            packing.check_components(item.trajectory_id, item.components)

        def calls() -> Iterator[list[Argument]]:
            for start in range(0, len(scored), _ITEMS_PER_CALL):
                chunk = scored[start : start + _ITEMS_PER_CALL]
                numbers = records.GroupNumbers()
                members = [records.address(item.trajectory_id) for item in chunk]
                rows = b"".join([records.MEMBER.pack(numbers[group], sample) for group, sample in members])
                components = [packing.pack_components(item.trajectory_id, item.components) for item in chunk]
                yield [len(numbers), len(chunk), rows, *numbers, *components]

        def groups(_: int, answer: list[bytes]) -> list[GroupId]:
            return [GroupId(group.decode()) for group in answer]

        return [group for found in await self._client.run_each("score", fence, calls(), groups) for group in found]

    async def drop_trajectory(self, fence: common_pb2.Fence, trajectory: TrajectoryId, reason: str) -> list[GroupId]:
        group, sample = records.address(trajectory)
        closed = await self._client.run("drop_trajectory", fence, group, sample, reason)
        return [group] if closed else []

    async def _undamaged(self, fence: common_pb2.Fence, claims: list[Claim]) -> list[Claim]:
        """Drops trajectories whose stored bytes are damaged; they cost themselves only."""
        damaged = [claim.trajectory for claim in claims if claim.trajectory.state is TrajectoryState.DROPPED]
        for trajectory in damaged:
            log.warning("trajectory %s is dropped: %s", trajectory.trajectory_id, trajectory.drop_reason)
            await self.drop_trajectory(fence, trajectory.trajectory_id, trajectory.drop_reason)
        return [one for one in claims if one.trajectory.state is not TrajectoryState.DROPPED] if damaged else claims

    async def drop_group(self, fence: common_pb2.Fence, group: GroupId, reason: str) -> None:
        await self._client.run("drop_group", fence, group, reason)

    async def rewind(self, fence: common_pb2.Fence, iteration: int) -> int:
        forgotten: int = await self._client.run("rewind", fence, iteration)
        return forgotten

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
    if group.num_samples > records.MAX_SAMPLES:
        raise RequestError(
            f"group {group.group_id} has num_samples {group.num_samples}; it must be at most {records.MAX_SAMPLES}.",
            field="num_samples",
        )
    if not group.prompt.token_ids:
        raise RequestError(
            f"group {group.group_id} has prompt {group.prompt.prompt_id!r} without tokens.", field="prompt.token_ids"
        )


def _chunks(updates: Sequence[Update]) -> Iterator[Sequence[Update]]:
    """Updates in calls of bounded length and size."""
    first = num_bytes = 0
    for number, update in enumerate(updates):
        num_bytes += 0 if update.segment is None else BYTES_PER_TOKEN * len(update.segment.token_ids)
        if number + 1 - first >= _ITEMS_PER_CALL or num_bytes >= BYTES_PER_CALL:
            yield updates[first : number + 1]
            first, num_bytes = number + 1, 0
    if first < len(updates):
        yield updates[first:]


def _ids(raw: Sequence[bytes]) -> list[TrajectoryId]:
    return [TrajectoryId(identity.decode()) for identity in raw]
