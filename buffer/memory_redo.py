"""Redo log, commits, branches and weight registry of MemoryBuffer; follows the scripts of the same names."""

from collections.abc import Iterator

from crescendo.buffer.memory_ledger import GroupEntry, MemoryLedger
from crescendo.buffer.protocol import WeightRecord
from crescendo.common.errors import RequestError
from crescendo.common.types import GroupId, GroupState
from crescendo.proto.v1 import common_pb2, trainer_pb2


class MemoryRedo:
    """What is consumed, committed and branched."""

    def __init__(self, ledger: MemoryLedger) -> None:
        self._ledger = ledger
        self._redo: dict[tuple[int, int], bytes] = {}
        self._branches: list[tuple[int, int]] = []  # of branch 1, 2, ...: parent, iteration
        self.commit_marker: tuple[int, int, str] | None = None
        self.versions: list[WeightRecord] = []

    def record(self, batch: trainer_pb2.TrainBatch) -> None:
        """Records a batch and consumes its groups."""
        packed = batch.SerializeToString(deterministic=True)
        at = (batch.branch, batch.iteration)
        if self._redo.get(at) == packed:
            return
        if at in self._redo:
            raise RequestError(f"another batch is recorded for branch {at[0]}, iteration {at[1]}.")
        marker = self.commit_marker
        if marker is not None and marker[0] == batch.branch and batch.iteration <= marker[1]:
            raise RequestError(f"iteration {at[1]} of branch {at[0]} lies below the commit at {marker[1]}.")
        groups = [self._trainable(GroupId(group.group_id), batch.branch) for group in batch.groups]
        self._redo[at] = packed
        for group in groups:
            group.state, group.consumed = GroupState.CONSUMED, at

    def _trainable(self, identity: GroupId, branch: int) -> GroupEntry:
        group = self._ledger.group(identity)
        if group.state is not GroupState.COMPLETE:
            raise RequestError(f"group {identity} is {group.state}; only a complete one can be trained on.")
        if group.branch != branch:
            raise RequestError(f"group {identity} belongs to branch {group.branch}, not {branch}.")
        return group

    def after(self, branch: int, iteration: int) -> list[trainer_pb2.TrainBatch]:
        """Recorded batches of a branch above an iteration, in order."""
        above = sorted(at for at in self._redo if at[0] == branch and at[1] > iteration)
        return [trainer_pb2.TrainBatch.FromString(self._redo[at]) for at in above]

    def commit(self, branch: int, iteration: int, manifest: str) -> None:
        """Moves the marker and trims the branch's log."""
        if self.commit_marker is not None and (branch, iteration) < self.commit_marker[:2]:
            raise RequestError(
                f"commit of branch {branch}, iteration {iteration} lies below the commit {self.commit_marker[:2]}."
            )
        self.commit_marker = (branch, iteration, manifest)
        self._redo = {at: packed for at, packed in self._redo.items() if at[0] != branch or at[1] > iteration}

    def open_branch(self, parent: int, from_iteration: int, drop_partials: bool) -> int:
        """A new branch; see open_branch.lua."""
        newest = len(self._branches)
        if not 0 <= parent <= newest:
            raise RequestError(f"branch {parent} is unknown.")
        if self._is_repeat(newest, (parent, from_iteration)):
            return newest
        line = dict(self._line(parent, from_iteration))
        for group in self._ledger.groups_in([GroupState.CONSUMED]):
            if group.consumed is not None and group.consumed[1] > line.get(group.consumed[0], -(2**62)):
                group.state = GroupState.ABANDONED
        # Their number does not say how new weights are: what a recovery trains again gets new ones.
        on_line = {0} | {one.version for one in self.versions if one.iteration <= line.get(one.branch, -(2**62))}
        for group in self._ledger.groups_in([GroupState.OPEN, GroupState.COMPLETE]):
            group.branch = newest + 1
            if drop_partials and any(member.weights not in on_line for member in group.members):
                self._ledger.drop_group(group, "rollback")
        self._branches.append((parent, from_iteration))
        return newest + 1

    def branches(self) -> dict[int, tuple[int, int]]:
        """Parent and iteration of each branch but the first."""
        return dict(enumerate(self._branches, start=1))

    def _is_repeat(self, newest: int, origin: tuple[int, int]) -> bool:
        if newest == 0 or self._branches[newest - 1] != origin:
            return False
        committed = self.commit_marker is not None and self.commit_marker[0] >= newest
        groups = self._ledger.groups_in([GroupState.CONSUMED])
        return not committed and not any(group.consumed and group.consumed[0] == newest for group in groups)

    def _line(self, branch: int, limit: int) -> Iterator[tuple[int, int]]:
        """The last iteration of each branch that a branch from here builds upon."""
        yield branch, limit
        while branch > 0:
            branch, iteration = self._branches[branch - 1]
            limit = min(limit, iteration)
            yield branch, limit

    def next_version(self, parent: int, branch: int, iteration: int) -> int:
        """A version never used before."""
        self.versions.append(WeightRecord(len(self.versions) + 1, parent, branch, iteration))
        return len(self.versions)

    def register(self, manifest: common_pb2.WeightManifest) -> None:
        """Puts a manifest into the registry."""
        known = self.find(manifest.version)
        if known is None:
            raise RequestError(f"weight version {manifest.version} was never issued.")
        copy = common_pb2.WeightManifest.FromString(manifest.SerializeToString())
        record = WeightRecord(known.version, known.parent, known.branch, known.iteration, copy)
        self.versions[manifest.version - 1] = record

    def find(self, version: int) -> WeightRecord | None:
        """The entry of a version."""
        return self.versions[version - 1] if 1 <= version <= len(self.versions) else None
