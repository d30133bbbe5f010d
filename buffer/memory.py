"""The experience buffer in the process: for controller tests and simulation.

Keeps the promises of RedisBuffer but durability and admission (it takes every group); lives and dies with its
object. Not for use by several threads. Every method runs without a suspension between reading and writing, so
tasks of one event loop never see half a change.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from crescendo.buffer import packing
from crescendo.buffer.archived import below_commit
from crescendo.buffer.lease_clock import LeaseClock
from crescendo.buffer.ledger import check_new_group
from crescendo.buffer.memory_ledger import Entry, GroupEntry, MemoryLedger
from crescendo.buffer.memory_redo import MemoryRedo
from crescendo.buffer.protocol import Admission, Claim, NewGroup, Scored, Update, WeightRecord
from crescendo.buffer.redis_buffer import MAX_ATTEMPTS
from crescendo.buffer.redo import check_batch
from crescendo.common.errors import RequestError, StaleFenceError
from crescendo.common.types import Group, GroupId, GroupState, PromptId, Trajectory, TrajectoryId, TrajectoryState
from crescendo.proto.v1 import common_pb2, trainer_pb2


class MemoryBuffer:
    """ExperienceBuffer in plain objects."""

    def __init__(self, *, max_attempts: int = MAX_ATTEMPTS, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._max_attempts = max_attempts
        self._lease_clock = LeaseClock(monotonic)
        self._clock_s = 0.0
        self._fence = (0, 0)
        self._archiver = 0
        self._ledger = MemoryLedger()
        self._redo = MemoryRedo(self._ledger)
        self._news = asyncio.Condition()

    async def acquire_epoch(self, held: common_pb2.Fence | None = None) -> common_pb2.Fence:
        if held is not None:
            self._check(held)
        self._fence = (self._fence[0] + 1, 0)
        self._lease_clock.set(int(1000 * self._clock_s))
        for entry in self._ledger.in_state(TrajectoryState.LEASED):
            self._ledger.lose_lease(entry, None)
        for entry in self._ledger.in_state(TrajectoryState.FINISHED):
            entry.handed_out = False
        await self._tell()
        return common_pb2.Fence(epoch=self._fence[0], counter=0)

    async def advance_fence(self, fence: common_pb2.Fence) -> common_pb2.Fence:
        self._check(fence)
        self._fence = (self._fence[0], self._fence[1] + 1)
        return common_pb2.Fence(epoch=self._fence[0], counter=self._fence[1])

    async def open_groups(self, fence: common_pb2.Fence, groups: Sequence[NewGroup]) -> Admission:
        self._check(fence)
        for group in groups:
            check_new_group(group)
        opened = sum(self._ledger.open(group) for group in groups)
        await self._tell()
        return Admission(opened)

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

        def attempt() -> list[Claim]:
            self._check(fence)
            return self._claim_now(worker_id, limit, lease_s, iteration, max_spans)

        return await self._waiting(attempt, wait_s)

    def _claim_now(self, worker_id: str, limit: int, lease_s: float, iteration: int, max_spans: int) -> list[Claim]:
        claims: list[Claim] = []
        self._ledger.end_rests(iteration)
        for entry in self._ledger.claimable():
            if len(claims) == limit:
                break
            if entry.span_iteration != iteration:
                if 0 < max_spans <= entry.spans:
                    self._ledger.drop(entry, "max_spans")
                    continue
                entry.spans += 1
            entry.state, entry.worker, entry.ready = TrajectoryState.LEASED, worker_id, False
            entry.span_iteration, entry.lease_s, entry.expiry_s = iteration, lease_s, self._clock_s + lease_s
            claims.append(self._claim_of(entry))
        return claims

    async def flush(self, fence: common_pb2.Fence, worker_id: str, updates: Sequence[Update]) -> list[TrajectoryId]:
        for update in updates:
            packing.check_update(update)
        self._check(fence)
        lost: list[TrajectoryId] = []
        refused: list[tuple[Update, int]] = []
        for update in updates:
            self._apply(worker_id, update, lost, refused)
        await self._tell()
        if refused:
            raise packing.refused_updates(refused, len(updates))
        return lost

    def _apply(
        self, worker_id: str, update: Update, lost: list[TrajectoryId], refused: list[tuple[Update, int]]
    ) -> None:
        entry = self._ledger.entries.get(update.trajectory_id)
        if entry is None:
            refused.append((update, -1))
            return
        last = update.offset + (0 if update.segment is None else len(update.segment.token_ids))
        finished = update.state is TrajectoryState.FINISHED and entry.state is TrajectoryState.SCORED
        if entry.worker != worker_id:
            lost.append(update.trajectory_id)
        elif entry.state is not TrajectoryState.LEASED:
            if not (entry.state is update.state or finished) or last > entry.tokens:
                lost.append(update.trajectory_id)
        elif update.offset > entry.tokens or update.offset < entry.tokens < last:
            refused.append((update, entry.tokens))
        else:
            if last > entry.tokens and update.segment is not None:
                entry.segments.append(update.segment)
                entry.tokens = last
            entry.state, entry.finish_reason = update.state, update.finish_reason
            entry.ready = update.interrupted
            entry.expiry_s = self._clock_s + entry.lease_s

    async def expire_leases(self, fence: common_pb2.Fence) -> list[TrajectoryId]:
        self._check(fence)
        self._clock_s = max(self._clock_s, self._lease_clock.now_ms() / 1000)
        self._lease_clock.set(int(1000 * self._clock_s))
        held = self._ledger.in_state(TrajectoryState.LEASED)
        expired = sorted(
            (entry for entry in held if entry.expiry_s <= self._clock_s),
            key=lambda entry: (entry.expiry_s, entry.identity),
        )
        return await self._lose(expired)

    async def release_worker(self, fence: common_pb2.Fence, worker_id: str) -> list[TrajectoryId]:
        self._check(fence)
        return await self._lose(
            [entry for entry in self._ledger.in_state(TrajectoryState.LEASED) if entry.worker == worker_id]
        )

    async def _lose(self, entries: Sequence[Entry]) -> list[TrajectoryId]:
        for entry in entries:
            self._ledger.lose_lease(entry, self._max_attempts)
        await self._tell()
        return [entry.identity for entry in entries]

    async def claim_finished(self, fence: common_pb2.Fence, *, limit: int, wait_s: float) -> list[Claim]:
        if limit < 1:
            return []

        def attempt() -> list[Claim]:
            self._check(fence)
            finished = self._ledger.in_state(TrajectoryState.FINISHED)
            taken = [entry for entry in finished if not entry.handed_out][:limit]
            for entry in taken:
                entry.handed_out = True
            return [self._claim_of(entry) for entry in taken]

        return await self._waiting(attempt, wait_s)

    async def score(self, fence: common_pb2.Fence, scored: Sequence[Scored]) -> list[GroupId]:
        for item in scored:
            packing.check_components(item.trajectory_id, item.components)
        self._check(fence)
        accepted = (TrajectoryState.FINISHED, TrajectoryState.SCORED, TrajectoryState.DROPPED)
        for item in scored:
            if (state := self._ledger.entry(item.trajectory_id).state) not in accepted:
                raise RequestError(f"trajectory {item.trajectory_id} is {state}; only a finished one can be scored.")
        completed: list[GroupId] = []
        for item in scored:
            entry = self._ledger.entry(item.trajectory_id)
            group = self._ledger.group(entry.group)
            if entry.state is TrajectoryState.FINISHED:
                entry.state, entry.components, entry.handed_out = TrajectoryState.SCORED, item.components, False
                self._ledger.settle(group, entry.identity)
            settled = group.settled_by == entry.identity and group.state is GroupState.COMPLETE
            if entry.state is TrajectoryState.SCORED and settled:
                completed.append(entry.group)
        return completed

    async def drop_trajectory(self, fence: common_pb2.Fence, trajectory: TrajectoryId, reason: str) -> list[GroupId]:
        self._check(fence)
        entry = self._ledger.entry(trajectory)
        self._ledger.drop(entry, reason)
        group = self._ledger.group(entry.group)
        closed = group.settled_by == trajectory and group.state in (GroupState.COMPLETE, GroupState.DROPPED)
        return [entry.group] if closed else []

    async def drop_group(self, fence: common_pb2.Fence, group: GroupId, reason: str) -> None:
        self._check(fence)
        entry = self._ledger.group(group)
        if entry.state is GroupState.DROPPED:
            return
        if entry.state not in (GroupState.OPEN, GroupState.COMPLETE):
            raise RequestError(f"group {group} is {entry.state}; only an open or complete one can be dropped.")
        self._ledger.drop_group(entry, reason)

    async def rewind(self, fence: common_pb2.Fence, iteration: int) -> int:
        self._check(fence)
        forgotten = self._ledger.rewind(iteration)
        await self._tell()
        return forgotten

    async def groups(self, state: GroupState, *, limit: int = 0) -> list[GroupId]:
        found = [group.new.group_id for group in self._ledger.groups_in([state]) if not group.archived]
        return found[:limit] if limit else found

    async def load_groups(
        self, ids: Sequence[GroupId], *, with_trajectories: bool = True, with_tokens: bool = True
    ) -> list[Group]:
        return [self._group_of(self._ledger.group(identity), with_trajectories, with_tokens) for identity in ids]

    async def load_trajectories(self, ids: Sequence[TrajectoryId]) -> list[Trajectory]:
        return [self._trajectory_of(self._ledger.entry(identity)) for identity in ids]

    async def load_prompts(self, groups: Sequence[GroupId]) -> list[common_pb2.Prompt]:
        return [self._ledger.prompt(identity) for identity in groups]

    async def counts(self) -> dict[str, int]:
        return self._ledger.counts()

    async def open_counts(self, iteration: int) -> dict[str, int]:
        return self._ledger.open_counts(iteration)

    async def record_batch(self, fence: common_pb2.Fence, batch: trainer_pb2.TrainBatch) -> None:
        check_batch(batch)
        self._check(fence)
        self._redo.record(batch)

    async def batches_after(self, branch: int, iteration: int) -> list[trainer_pb2.TrainBatch]:
        return self._redo.after(branch, iteration)

    async def commit(self, fence: common_pb2.Fence, branch: int, iteration: int, manifest: str) -> None:
        self._check(fence)
        self._redo.commit(branch, iteration, manifest)

    async def committed(self) -> tuple[int, int, str] | None:
        return self._redo.commit_marker

    async def open_branch(
        self, fence: common_pb2.Fence, *, parent: int, from_iteration: int, drop_partials: bool
    ) -> int:
        self._check(fence)
        return self._redo.open_branch(parent, from_iteration, drop_partials)

    async def branches(self) -> dict[int, tuple[int, int]]:
        return self._redo.branches()

    async def acquire_archiver(self) -> int:
        self._archiver += 1
        return self._archiver

    async def trim(self, archiver: int, archived: Mapping[GroupId, str]) -> int:
        if archiver != self._archiver:
            raise StaleFenceError(f"archiver {archiver} is not the newest, {self._archiver}.", field="archiver")
        marker = self._redo.commit_marker
        found = [(self._ledger.group(identity), file) for identity, file in archived.items()]
        for group, _ in found:
            if not below_commit(self._group_of(group, False), marker[:2] if marker else None):
                raise RequestError(f"group {group.new.group_id} is {group.state} or above the commit: not trimmed.")
        return sum(self._ledger.trim(group, file) for group, file in found)

    async def next_version(self, fence: common_pb2.Fence, *, parent: int, branch: int, iteration: int) -> int:
        self._check(fence)
        return self._redo.next_version(parent, branch, iteration)

    async def register_weights(self, fence: common_pb2.Fence, manifest: common_pb2.WeightManifest) -> None:
        self._check(fence)
        self._redo.register(manifest)

    async def weights(self, version: int) -> WeightRecord | None:
        return self._redo.find(version)

    async def lineage(self) -> list[WeightRecord]:
        return list(self._redo.versions)

    async def close(self) -> None:
        """Nothing to end."""

    def _check(self, fence: common_pb2.Fence) -> None:
        given = (fence.epoch, fence.counter)
        if fence.epoch < 1 or given < self._fence:
            raise StaleFenceError(f"fence {given} is older than {self._fence}.", field="fence")
        self._fence = given

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _waiting(self, attempt: Callable[[], list[Claim]], wait_s: float) -> list[Claim]:
        deadline = time.monotonic() + wait_s
        async with self._news:
            claims = attempt()
            while not claims and (left_s := deadline - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(self._news.wait(), left_s)
                except TimeoutError:
                    return attempt()
                claims = attempt()
        return claims

    def _claim_of(self, entry: Entry) -> Claim:
        return Claim(self._trajectory_of(entry), self._ledger.group(entry.group).new.prompt)

    def _trajectory_of(self, entry: Entry, with_tokens: bool = True) -> Trajectory:
        unread = () if with_tokens else tuple(entry.segments)
        return Trajectory(
            trajectory_id=entry.identity,
            group_id=entry.group,
            prompt_token_ids=np.array(self._ledger.group(entry.group).new.prompt.token_ids, dtype=np.int32),
            segments=tuple(entry.segments) if with_tokens else (),
            state=entry.state,
            finish_reason=entry.finish_reason,
            components=entry.components,
            attempts=entry.attempts,
            spans=entry.spans,
            drop_reason=entry.drop_reason,
            unread_tokens=sum(len(one.token_ids) for one in unread),
            unread_segments=len(unread),
        )

    def _group_of(self, group: GroupEntry, with_trajectories: bool, with_tokens: bool = True) -> Group:
        members = group.members if with_trajectories and not group.archived else []
        return Group(
            group_id=group.new.group_id,
            prompt_id=PromptId(group.new.prompt.prompt_id),
            state=group.state,
            branch=group.branch,
            iteration=group.new.iteration,
            stage=group.new.stage,
            trajectory_ids=tuple(member.identity for member in group.members),
            consumed_iteration=group.consumed[1] if group.consumed else -1,
            drop_reason=group.drop_reason,
            archived=group.archived,
            trajectories=tuple(self._trajectory_of(one, with_tokens) for one in members),
        )
