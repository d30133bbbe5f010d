"""Trimming what the archive holds, on Redis; the archiver (buffer/archive/) decides what that is."""

from collections.abc import Mapping

from crescendo.buffer.part import Part
from crescendo.common.types import Group, GroupId, GroupState
from crescendo.proto.v1 import common_pb2

_GROUPS_PER_CALL = 64  # of 16 trajectories of 24K tokens: some milliseconds, since values are freed in the background


class Archived(Part):
    """Issues archivers' tokens and lets go of archived payloads."""

    async def acquire_archiver(self) -> int:
        token: int = await self._client.run("acquire_archiver", None, durable=True)
        return token

    async def trim(self, archiver: int, archived: Mapping[GroupId, str]) -> int:
        rows, trimmed = list(archived.items()), 0
        token = common_pb2.Fence(epoch=archiver)
        for start in range(0, max(1, len(rows)), _GROUPS_PER_CALL):
            arguments = [word for row in rows[start : start + _GROUPS_PER_CALL] for word in row]
            trimmed += await self._client.run("trim_archived", token, *arguments)
        return trimmed


def below_commit(group: Group, commit: tuple[int, int] | None) -> bool:
    """Whether a group has ended and nothing above the newest commit (branch, iteration) may need it again.

    A batch above the commit is trained again after a crash, so its groups stay, abandoned ones too: a rollback
    counts only when its branch commits. trim_archived.lua checks the same.
    """
    if commit is None:
        return False
    if group.state is GroupState.DROPPED:
        return group.iteration <= commit[1]
    ended = group.state in (GroupState.CONSUMED, GroupState.ABANDONED)
    return ended and (group.branch, group.consumed_iteration) <= commit
