"""The ledger of MemoryBuffer: states of groups and trajectories, their queues and counters, in plain objects.

Follows buffer/scripts/prelude_records.lua step by step, so that both buffers agree on every state.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from crescendo.buffer.protocol import NewGroup
from crescendo.common.errors import RequestError
from crescendo.common.types import GroupId, GroupState, Segment, TrajectoryId, TrajectoryState, trajectory_id
from crescendo.proto.v1 import common_pb2

ENDED = (TrajectoryState.SCORED, TrajectoryState.DROPPED)


@dataclass
class Entry:
    """A trajectory in the ledger; ready: parked, and claimable in the iteration that it ran in."""

    identity: TrajectoryId
    group: GroupId
    sequence: int
    state: TrajectoryState = TrajectoryState.PENDING
    segments: list[Segment] = field(default_factory=list)
    components: tuple[common_pb2.RewardComponent, ...] = ()
    finish_reason: common_pb2.FinishReason.ValueType = common_pb2.FINISH_REASON_UNSPECIFIED
    tokens: int = 0
    spans: int = 0
    span_iteration: int | None = None
    attempts: int = 0
    worker: str = ""
    lease_s: float = 0.0
    expiry_s: float = 0.0
    ready: bool = False
    handed_out: bool = False
    drop_reason: str = ""

    @property
    def weights(self) -> int:
        """Newest weight version in it; 0 before the first token."""
        return self.segments[-1].weight_version if self.segments else 0


@dataclass
class GroupEntry:
    """A group in the ledger."""

    new: NewGroup
    sequence: int
    branch: int
    members: list[Entry]
    state: GroupState = GroupState.OPEN
    settled_by: TrajectoryId | None = None
    consumed: tuple[int, int] | None = None  # branch, iteration
    drop_reason: str = ""
    archived: str = ""


class MemoryLedger:
    """Groups and trajectories by id, in the order of opening."""

    def __init__(self) -> None:
        self.groups: dict[GroupId, GroupEntry] = {}
        self.entries: dict[TrajectoryId, Entry] = {}
        self._running: dict[TrajectoryId, Entry] = {}  # not ended yet: what the queues look through

    def open(self, new: NewGroup) -> bool:
        """Opens a group unless it is there; true if it is new."""
        if new.group_id in self.groups:
            return False
        first = len(self.entries)
        members = [
            Entry(trajectory_id(new.group_id, sample), new.group_id, first + sample)
            for sample in range(new.num_samples)
        ]
        self.groups[new.group_id] = GroupEntry(new, first, new.branch, members)
        self.entries.update({member.identity: member for member in members})
        self._running.update({member.identity: member for member in members})
        return True

    def entry(self, identity: TrajectoryId) -> Entry:
        """A trajectory; raises RequestError when it is unknown."""
        entry = self.entries.get(identity)
        if entry is None or self.groups[entry.group].archived:
            raise RequestError(f"trajectory {identity} is unknown or archived.", field="trajectory_id")
        return entry

    def group(self, identity: GroupId) -> GroupEntry:
        """A group; raises RequestError when it is unknown."""
        if identity not in self.groups:
            raise RequestError(f"group {identity} is unknown.", field="group_id")
        return self.groups[identity]

    def prompt(self, identity: GroupId) -> common_pb2.Prompt:
        """A group's prompt; raises RequestError when it is unknown or archived."""
        if identity not in self.groups or self.groups[identity].archived:
            raise RequestError(f"group {identity} is unknown or archived.", field="group_id")
        return self.groups[identity].new.prompt

    def trim(self, group: GroupEntry, file: str) -> bool:
        """Lets go of a group's payload, which lies in an archive file; true if it was here."""
        if group.archived:
            return False
        group.archived = file
        for member in group.members:
            member.segments, member.components = [], ()
        return True

    def in_state(self, state: TrajectoryState) -> list[Entry]:
        """Trajectories in a state that is not an end, oldest first."""
        return [entry for entry in self._running.values() if entry.state is state]

    def groups_in(self, states: Iterable[GroupState]) -> list[GroupEntry]:
        """Groups in any of the states, oldest first."""
        wanted = set(states)
        return [group for group in self.groups.values() if group.state in wanted]

    def end_rests(self, iteration: int) -> None:
        """What was parked over budget in an earlier iteration may go on."""
        for entry in self.in_state(TrajectoryState.PARKED):
            if entry.span_iteration is not None and entry.span_iteration < iteration:
                entry.ready = True

    def claimable(self) -> list[Entry]:
        """Parked trajectories that may be continued, oldest first, then pending ones."""
        parked = [entry for entry in self.in_state(TrajectoryState.PARKED) if entry.ready]
        return parked + self.in_state(TrajectoryState.PENDING)

    def drop(self, entry: Entry, reason: str) -> None:
        """Drops a trajectory and settles its group."""
        if entry.state is TrajectoryState.DROPPED:
            return
        entry.state, entry.drop_reason, entry.worker, entry.handed_out = TrajectoryState.DROPPED, reason, "", False
        self.settle(self.groups[entry.group], entry.identity)

    def settle(self, group: GroupEntry, by: TrajectoryId) -> None:
        """Notes that a trajectory has ended, and closes its group when all of them have."""
        self._running.pop(by, None)
        states = {member.state for member in group.members}
        all_dropped = states == {TrajectoryState.DROPPED}
        if group.state is GroupState.OPEN and states <= set(ENDED):
            group.state = GroupState.DROPPED if all_dropped else GroupState.COMPLETE
        elif group.state is GroupState.COMPLETE and all_dropped:
            group.state = GroupState.DROPPED
        else:
            return
        group.settled_by = by
        if all_dropped:
            group.drop_reason = "every trajectory was dropped"

    def drop_group(self, group: GroupEntry, reason: str) -> None:
        """Drops an open or complete group with its trajectories."""
        for member in group.members:
            self.drop(member, reason)
        group.drop_reason = reason

    def rewind(self, iteration: int) -> int:
        """Forgets what open and complete groups did after an iteration; see rewind.lua."""
        forgotten = 0
        for group in self.groups_in([GroupState.OPEN, GroupState.COMPLETE]):
            for entry in group.members:
                if entry.state is not TrajectoryState.DROPPED and (entry.span_iteration or -1) > iteration:
                    forgotten += self._rewind(entry, iteration)
                    group.state, group.settled_by = GroupState.OPEN, None
        self._running = dict(sorted(self._running.items(), key=lambda item: item[1].sequence))
        return forgotten

    def _rewind(self, entry: Entry, iteration: int) -> int:
        had = entry.tokens
        entry.segments = [segment for segment in entry.segments if segment.iteration <= iteration]
        entry.tokens = sum(len(segment.token_ids) for segment in entry.segments)
        entry.state = TrajectoryState.PARKED if entry.tokens else TrajectoryState.PENDING
        entry.spans, entry.worker, entry.ready, entry.handed_out = max(entry.spans - 1, 0), "", False, False
        entry.span_iteration = entry.segments[-1].iteration if entry.segments else None
        entry.components, entry.finish_reason = (), common_pb2.FINISH_REASON_UNSPECIFIED
        self._running[entry.identity] = entry
        return had - entry.tokens

    def lose_lease(self, entry: Entry, max_attempts: int | None) -> None:
        """Takes a lease from a holder that can't use it; with a limit, that counts as an attempt."""
        if max_attempts is not None:
            entry.attempts += 1
            if entry.attempts >= max_attempts:
                self.drop(entry, "attempts")
                return
        entry.state, entry.worker, entry.ready = TrajectoryState.PARKED, "", True

    def counts(self) -> dict[str, int]:
        """`trajectories.<state>` and `groups.<state>`."""
        trajectories = Counter(entry.state for entry in self.entries.values())
        groups = Counter(group.state for group in self.groups.values())
        found = {f"trajectories.{state.value}": trajectories[state] for state in TrajectoryState}
        return found | {f"groups.{state.value}": groups[state] for state in GroupState}

    def open_counts(self, iteration: int) -> dict[str, int]:
        """States of trajectories of open groups opened in or before the iteration."""
        found = Counter(
            member.state
            for group in self.groups_in([GroupState.OPEN])
            if group.new.iteration <= iteration
            for member in group.members
        )
        return {state.value: found[state] for state in TrajectoryState}
