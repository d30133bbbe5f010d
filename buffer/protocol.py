"""The seam between the buffer and its users: what a run may ask of its experience buffer.

`RedisBuffer` (buffer/redis_buffer.py) keeps it in Redis or Valkey; `MemoryBuffer` (buffer/memory.py) in the
process, for controller tests and simulation. tests/contract/test_buffer.py runs one suite over both.

Every method that changes state takes the caller's fence and raises StaleFenceError when a newer one has been
seen. Every change is idempotent: repeating it after a lost answer changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from crescendo.common.types import Group, GroupId, GroupState, Segment, Trajectory, TrajectoryId, TrajectoryState
from crescendo.proto.v1 import common_pb2, trainer_pb2


@dataclass(frozen=True)
class NewGroup:
    """A group to open: num_samples trajectories of one prompt.

    max_response_tokens: the longest a response may become; memory for it is reserved (0: none is).
    """

    group_id: GroupId
    prompt: common_pb2.Prompt
    branch: int
    iteration: int
    stage: str
    num_samples: int
    max_response_tokens: int = 0


@dataclass(frozen=True)
class Admission:
    """What became of groups that were to be opened.

    opened: how many are new; refused: those, in order, for which there is no memory now. Nothing is wrong with them:
    they may be offered again.
    """

    opened: int
    refused: tuple[GroupId, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A leased trajectory: its prompt and what earlier iterations generated."""

    trajectory: Trajectory
    prompt: common_pb2.Prompt


@dataclass(frozen=True)
class Update:
    """News of a leased trajectory: tokens to append and, when it leaves the engine, its new state.

    segment: tokens generated since the last flush, appended at token `offset` of the response;
    state: LEASED renews the lease; PARKED or FINISHED end it; finish_reason goes with FINISHED;
    interrupted: parked by a pause, not by its token budget, so claimable again in the same iteration.
    """

    trajectory_id: TrajectoryId
    offset: int
    segment: Segment | None = None
    state: TrajectoryState = TrajectoryState.LEASED
    finish_reason: common_pb2.FinishReason.ValueType = common_pb2.FINISH_REASON_UNSPECIFIED
    interrupted: bool = False


@dataclass(frozen=True)
class Scored:
    """The components of one trajectory's reward."""

    trajectory_id: TrajectoryId
    components: tuple[common_pb2.RewardComponent, ...]


@dataclass(frozen=True)
class WeightRecord:
    """An entry of the weight registry. The manifest is empty until published."""

    version: int
    parent: int
    branch: int
    iteration: int
    manifest: common_pb2.WeightManifest = field(default_factory=common_pb2.WeightManifest)


class ExperienceBuffer(Protocol):
    """The ledger, the trajectories and the redo log of one run."""

    # Fencing -----------------------------------------------------------------------------------------

    async def acquire_epoch(self, held: common_pb2.Fence | None = None) -> common_pb2.Fence:
        """Takes over the run: a new epoch, counter 0. Older fences are refused from now on.

        held: the caller's own fence when it only renews its epoch; raises StaleFenceError when that is not the
        newest any more, so that a controller that was replaced cannot take the run back.
        """
        ...

    async def advance_fence(self, fence: common_pb2.Fence) -> common_pb2.Fence:
        """The next counter within the epoch, for a lease hand-over."""
        ...

    # Groups and trajectories -------------------------------------------------------------------------

    async def open_groups(self, fence: common_pb2.Fence, groups: Sequence[NewGroup]) -> Admission:
        """Opens groups that are not there yet, in order, while the memory that they may need can be reserved."""
        ...

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
        """Leases up to limit trajectories, parked ones of earlier iterations first.

        A trajectory parked in `iteration` itself is not claimed again in it; one that has spanned
        max_spans iterations (0: no limit) is dropped with reason `max_spans`. Waits up to wait_s on the
        wake-up key when there is nothing to claim.
        """
        ...

    async def flush(self, fence: common_pb2.Fence, worker_id: str, updates: Sequence[Update]) -> list[TrajectoryId]:
        """Applies updates; returns ids whose lease the worker no longer holds (it must drop them)."""
        ...

    async def expire_leases(self, fence: common_pb2.Fence) -> list[TrajectoryId]:
        """Parks trajectories whose lease ran out; called by the controller."""
        ...

    async def release_worker(self, fence: common_pb2.Fence, worker_id: str) -> list[TrajectoryId]:
        """Parks everything a dead worker held, claimable again in the same iteration."""
        ...

    async def claim_finished(self, fence: common_pb2.Fence, *, limit: int, wait_s: float) -> list[Claim]:
        """Takes finished trajectories to score; those not scored are handed out again after a restart."""
        ...

    async def score(self, fence: common_pb2.Fence, scored: Sequence[Scored]) -> list[GroupId]:
        """Stores components; returns groups that became complete by it."""
        ...

    async def drop_trajectory(self, fence: common_pb2.Fence, trajectory: TrajectoryId, reason: str) -> list[GroupId]:
        """Excludes a trajectory, evidence kept; returns its group if that became complete or dropped by it."""
        ...

    async def drop_group(self, fence: common_pb2.Fence, group: GroupId, reason: str) -> None:
        """Excludes a group, evidence kept."""
        ...

    async def rewind(self, fence: common_pb2.Fence, iteration: int) -> int:
        """Forgets what open and complete groups did after an iteration; returns how many tokens that were.

        For deterministic resumption alone: everywhere else a flushed token is never generated again.
        """
        ...

    async def groups(self, state: GroupState, *, limit: int = 0) -> list[GroupId]:
        """Ids of groups in a state whose payload is here, not in the archive; oldest first."""
        ...

    async def load_groups(
        self, ids: Sequence[GroupId], *, with_trajectories: bool = True, with_tokens: bool = True
    ) -> list[Group]:
        """Groups with their trajectories; an archived group has none.

        with_tokens: false leaves segments where they are, which are nearly all bytes of a group; their numbers come.
        """
        ...

    async def load_trajectories(self, ids: Sequence[TrajectoryId]) -> list[Trajectory]:
        """Trajectories with their tokens."""
        ...

    async def load_prompts(self, groups: Sequence[GroupId]) -> list[common_pb2.Prompt]:
        """The prompts of groups, in order."""
        ...

    async def counts(self) -> dict[str, int]:
        """Trajectories and groups by state: `trajectories.pending`, `groups.open`, ..."""
        ...

    async def open_counts(self, iteration: int) -> dict[str, int]:
        """Of groups opened in or before an iteration and still open: trajectories by state."""
        ...

    # Redo log and commits ----------------------------------------------------------------------------

    async def record_batch(self, fence: common_pb2.Fence, batch: trainer_pb2.TrainBatch) -> None:
        """Appends a batch to the redo log and consumes its groups, in one step, durably, before training."""
        ...

    async def batches_after(self, branch: int, iteration: int) -> list[trainer_pb2.TrainBatch]:
        """Recorded batches of a branch above an iteration, in order."""
        ...

    async def commit(self, fence: common_pb2.Fence, branch: int, iteration: int, manifest: str) -> None:
        """Rolls the buffer to a commit whose manifest is already in place."""
        ...

    async def committed(self) -> tuple[int, int, str] | None:
        """(branch, iteration, manifest) of the newest commit the buffer knows."""
        ...

    async def open_branch(
        self, fence: common_pb2.Fence, *, parent: int, from_iteration: int, drop_partials: bool
    ) -> int:
        """A new branch from an older commit: groups consumed after it become abandoned. Returns its number."""
        ...

    async def branches(self) -> dict[int, tuple[int, int]]:
        """(parent, iteration that it started from) of each branch but 0, which starts the run."""
        ...

    # Archive -----------------------------------------------------------------------------------------

    async def acquire_archiver(self) -> int:
        """Takes the archive over: a token; older archivers are refused from now on."""
        ...

    async def trim(self, archiver: int, archived: Mapping[GroupId, str]) -> int:
        """Lets go of the payload of groups that the archive holds; archived: group to file. Returns how many.

        With no groups it only checks that the archiver is the newest.
        Raises StaleFenceError when a newer archiver took over, RequestError for a group that has not ended or
        lies above the newest commit; then nothing is trimmed.
        """
        ...

    # Weights -----------------------------------------------------------------------------------------

    async def next_version(self, fence: common_pb2.Fence, *, parent: int, branch: int, iteration: int) -> int:
        """A weight version never used before."""
        ...

    async def register_weights(self, fence: common_pb2.Fence, manifest: common_pb2.WeightManifest) -> None:
        """Puts a published manifest into the registry."""
        ...

    async def weights(self, version: int) -> WeightRecord | None:
        """The registry's entry of a version."""
        ...

    async def lineage(self) -> list[WeightRecord]:
        """All versions, oldest first."""
        ...

    async def close(self) -> None:
        """Ends the connection."""
        ...
