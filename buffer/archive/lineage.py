"""Weight versions and branches as the archive keeps them, so that a run's lineage outlives its buffer."""

from dataclasses import dataclass, field
from typing import Any

from crescendo.buffer.protocol import ExperienceBuffer

LINEAGE_VERSION = 1


@dataclass(frozen=True)
class Version:
    """A weight version. published: its bytes reached the registry; it may have served."""

    version: int
    parent: int
    branch: int
    iteration: int
    published: bool = False


@dataclass
class Lineage:
    """versions: oldest first; branches: branch to (parent, iteration it starts from); commit: (branch, iteration)."""

    versions: list[Version] = field(default_factory=list)
    branches: dict[int, tuple[int, int]] = field(default_factory=dict)
    commit: tuple[int, int] | None = None

    def line(self) -> dict[int, int | None]:
        """The surviving line: each branch the newest one builds upon, with its last iteration (None: open end)."""
        branch = max(self.branches, default=0)
        found: dict[int, int | None] = {branch: None}
        limit: int | None = None
        while branch in self.branches:
            branch, iteration = self.branches[branch]
            limit = iteration if limit is None else min(limit, iteration)
            found[branch] = limit
        return found

    def survives(self, branch: int, iteration: int) -> bool:
        """Whether what happened in an iteration of a branch is part of the surviving line."""
        line = self.line()
        if branch not in line:
            return False
        limit = line[branch]
        return limit is None or iteration <= limit

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Lineage":
        """What `LineageBook.to_dict` made; raises KeyError, TypeError or ValueError for anything else."""
        if stored["lineage_version"] != LINEAGE_VERSION:
            raise ValueError(f"lineage version {stored['lineage_version']} is not {LINEAGE_VERSION}")
        return cls(
            versions=[Version(*row) for row in stored["versions"]],
            branches={int(branch): (origin[0], origin[1]) for branch, origin in stored["branches"].items()},
            commit=tuple(stored["commit"]) if stored["commit"] else None,
        )


class LineageBook:
    """Reads the buffer's lineage bit by bit: each version once when new, again until it is published."""

    def __init__(self) -> None:
        self.lineage = Lineage()
        self._first_open = 1  # versions below are published, or will never be

    async def update(self, buffer: ExperienceBuffer, commit: tuple[int, int] | None) -> bool:
        """Reads what is new; true if anything was, or the commit has moved."""
        known = self.lineage
        versions = known.versions[: self._first_open - 1]
        while record := await buffer.weights(len(versions) + 1):
            published = bool(record.manifest.version)
            versions.append(Version(record.version, record.parent, record.branch, record.iteration, published))
        found = Lineage(versions, await buffer.branches(), commit)
        if versions:
            published_up_to = max((one.version for one in versions if one.published), default=0)
            self._first_open = max(self._first_open, published_up_to + 1)
        self.lineage = found
        return found != known

    def to_dict(self, run_id: str) -> dict[str, Any]:
        """As JSON."""
        lineage = self.lineage
        return {
            "lineage_version": LINEAGE_VERSION,
            "run_id": run_id,
            "versions": [
                [one.version, one.parent, one.branch, one.iteration, one.published] for one in lineage.versions
            ],
            "branches": {str(branch): list(origin) for branch, origin in lineage.branches.items()},
            "commit": list(lineage.commit) if lineage.commit else None,
        }
