"""Sweeps: payloads of ended groups, from the buffer to the archive, and only then out of the buffer.

    list        groups below the newest commit whose payload is still in the buffer
    write       their Parquet files, one a branch and iteration       crash here: files that nothing names
    manifest    names the files: from here on they count              crash here: the next archiver only trims
    trim        the buffer lets go of what the manifest names         crash here: the same
    next page

`write` loads a few groups at a time, so memory is bounded by those, not by the sweep. A new archiver takes a token
first; the buffer refuses the trim of an older one. A zombie may still write a file and a manifest under its own
token: the same groups twice, of which readers take the first.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crescendo.buffer.archive.lineage import LineageBook
from crescendo.buffer.archive.schema import Decode, Payload, file_schema, record_batch
from crescendo.buffer.archive.store import ArchiveFile, ArchiveManifest, ArchiveStore
from crescendo.buffer.archived import below_commit
from crescendo.buffer.protocol import ExperienceBuffer
from crescendo.common.errors import BufferStateError, StaleFenceError
from crescendo.common.failpoints import reach
from crescendo.common.types import Group, GroupId, GroupState

log = logging.getLogger(__name__)

ENDED = (GroupState.CONSUMED, GroupState.ABANDONED, GroupState.DROPPED)
GROUPS_PER_SWEEP = 512
GROUPS_PER_LOAD = 8  # of 16 trajectories of 24K tokens: 30 MB, and as much again in Arrow


@dataclass(frozen=True)
class RunFacts:
    """What files tell about the run. decode, decode_prompt: token ids to text, where the tokenizer is known."""

    run_id: str
    chat_template: bool = True
    decode: Decode | None = None
    decode_prompt: Decode | None = None


@dataclass
class Counts:
    """What one archiver has done. num_set_aside: groups damaged in the buffer, which stay there."""

    num_groups: int = 0
    num_trajectories: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    num_set_aside: int = 0


class Archiver:
    """Sweeps one run's buffer into one archive; one sweep at a time."""

    def __init__(self, buffer: ExperienceBuffer, store: ArchiveStore, facts: RunFacts) -> None:
        self.counts = Counts()
        self._buffer = buffer
        self._store = store
        self._facts = facts
        self._token = 0
        self._number = 0
        self._named: dict[GroupId, str] = {}
        self._set_aside: set[GroupId] = set()
        self._lineage = LineageBook()
        self._sweeping = asyncio.Lock()
        self.steps = 0
        """Grows with each file, manifest and trim: tells a slow archiver from a hung one."""

    @property
    def is_idle(self) -> bool:
        """Whether no sweep is going on."""
        return not self._sweeping.locked()

    async def take_over(self) -> None:
        """Takes the archive over and learns what earlier archivers left in place."""
        self._token = await self._buffer.acquire_archiver()
        manifests = await asyncio.to_thread(self._store.manifests)
        for manifest in manifests:
            for file in manifest.files:
                for group in file.groups:
                    self._named.setdefault(GroupId(group), file.path)

    async def sweep(self) -> int:
        """Archives and trims all that lies below the newest commit; returns how many groups left the buffer.

        Raises StaleFenceError when a newer archiver took over, EnvironmentProblem when the archive can't be
        written, and what the buffer raises. What was not trimmed is tried again by the next sweep.
        """
        async with self._sweeping:
            await self._buffer.trim(self._token, {})  # a successor does the work: write nothing
            total = 0
            while trimmed := await self._page():
                total += trimmed
            self._named.clear()  # all of it is trimmed now, and what this archiver names it trims itself
            return total

    async def _page(self) -> int:
        marker = await self._buffer.committed()
        if marker is None:
            return 0
        commit = marker[:2]
        await self._note_lineage(commit)
        groups = await self._ended(commit)
        known = {one.group_id: one.archived or self._named.get(one.group_id, "") for one in groups}
        placed = {group: file for group, file in known.items() if file}
        fresh = [one for one in groups if not known[one.group_id]]
        files = await self._write(fresh)
        if files:
            reach("archive.written")
            manifest = ArchiveManifest(self._facts.run_id, self._token, self._number, commit, files)
            await asyncio.to_thread(self._store.put_manifest, manifest)
            self.steps += 1
            reach("archive.named")
        written = {GroupId(group): file.path for file in files for group in file.groups}
        self._named |= written  # so that a trim that fails is tried again without writing twice
        if not placed and not written:
            return 0
        trimmed = await self._buffer.trim(self._token, {**placed, **written})
        self.steps += 1
        reach("archive.trimmed")
        return trimmed

    async def _ended(self, commit: tuple[int, int]) -> list[Group]:
        """Groups that may leave the buffer, oldest first, bounded in number."""
        ids = [one for state in ENDED for one in await self._buffer.groups(state, limit=GROUPS_PER_SWEEP)]
        wanted = [one for one in ids if one not in self._set_aside]
        groups = await self._buffer.load_groups(wanted, with_trajectories=False)
        return [group for group in groups if below_commit(group, commit)]

    async def _write(self, groups: Sequence[Group]) -> list[ArchiveFile]:
        """One file a branch and iteration."""
        parts: dict[tuple[int, int], list[GroupId]] = defaultdict(list)
        for group in groups:
            iteration = group.iteration if group.state is GroupState.DROPPED else group.consumed_iteration
            parts[group.branch, iteration].append(group.group_id)
        files = [await self._write_file(branch, iteration, ids) for (branch, iteration), ids in sorted(parts.items())]
        return [file for file in files if file.groups]

    async def _write_file(self, branch: int, iteration: int, ids: Sequence[GroupId]) -> ArchiveFile:
        self._number += 1
        path = self._store.data_path(branch, iteration, self._token, self._number)
        schema = file_schema(self._facts.run_id, chat_template=self._facts.chat_template)
        states: dict[str, str] = {}
        num_trajectories = num_tokens = 0
        target = await asyncio.to_thread(self._store.create, path, schema)
        try:
            for start in range(0, len(ids), GROUPS_PER_LOAD):
                payloads = await self._load(ids[start : start + GROUPS_PER_LOAD])
                rows = await asyncio.to_thread(record_batch, payloads, self._facts.decode, self._facts.decode_prompt)
                await asyncio.to_thread(target.write, rows)
                states |= {one.group.group_id: one.group.state.value for one in payloads}
                trajectories = [each for one in payloads for each in one.group.trajectories]
                num_trajectories += len(trajectories)
                num_tokens += sum(each.num_tokens for each in trajectories)
                self.steps += 1
                reach("archive.writing")
        except BaseException:
            target.discard()
            raise
        num_bytes = await asyncio.to_thread(target.close)
        counts = self.counts
        self.counts = replace(
            counts,
            num_groups=counts.num_groups + len(states),
            num_trajectories=counts.num_trajectories + num_trajectories,
            num_tokens=counts.num_tokens + num_tokens,
            num_bytes=counts.num_bytes + num_bytes,
        )
        return ArchiveFile(path, branch, iteration, num_bytes, num_trajectories, num_tokens, states)

    async def _load(self, ids: Sequence[GroupId]) -> list[Payload]:
        """Groups with their payload; a damaged one is set aside by itself."""
        try:
            groups = await self._buffer.load_groups(ids)
            prompts = await self._buffer.load_prompts(ids)
        except StaleFenceError:
            raise
        except BufferStateError as error:
            if error.retryable:
                raise
            if len(ids) > 1:
                return [payload for one in ids for payload in await self._load([one])]
            log.error("group %s can't be archived and stays in the buffer: %s", ids[0], error)
            self._set_aside.add(ids[0])
            self.counts.num_set_aside += 1
            return []
        return [Payload(group, prompt) for group, prompt in zip(groups, prompts, strict=True)]

    async def _note_lineage(self, commit: tuple[int, int]) -> None:
        """Keeps the archive's lineage file up with the newest commit."""
        if await self._lineage.update(self._buffer, commit):
            snapshot = self._lineage.to_dict(self._facts.run_id)
            await asyncio.to_thread(self._store.put_lineage, self._token, snapshot)
