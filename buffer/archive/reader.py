"""Reading an archive: only what manifests name, each group once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from crescendo.buffer.archive.lineage import Lineage
from crescendo.buffer.archive.schema import SCHEMA_VERSION, VERSION_KEY
from crescendo.buffer.archive.store import ArchiveFile, ArchiveStore
from crescendo.common.errors import DataError

_ROWS_PER_READ = 64  # of 24K tokens: some 20 MB


@dataclass(frozen=True)
class ArchivedGroup:
    """One group of the archive. rows: its trajectories, a dict of columns each."""

    group_id: str
    rows: list[dict[str, Any]]


class Archive:
    """An archive as its manifests stood when it was opened."""

    def __init__(self, store: ArchiveStore) -> None:
        """Raises DataError when there is no archive, or a manifest names a file that is missing or cut short."""
        manifests = store.manifests()
        if not manifests:
            raise DataError(
                f"there is no archive in {store.url}.",
                field="archive",
                fix="Let the run commit at least once with archive.enabled=true; look at logs/archiver-0.log.",
            )
        self._store = store
        self.run_id = manifests[0].run_id
        self.files = [file for manifest in manifests for file in manifest.files]
        self._owner: dict[str, str] = {}
        for file in self.files:
            for group in file.groups:
                self._owner.setdefault(group, file.path)
        self.lineage = self._read_lineage()
        for file in self.files:
            self._check(file)

    @classmethod
    def open(cls, url: str) -> "Archive":
        """The archive at a URL."""
        return cls(ArchiveStore(url))

    @property
    def num_groups(self) -> int:
        """Groups, each counted once."""
        return len(self._owner)

    def survives(self, row: dict[str, Any]) -> bool:
        """Whether a trajectory was trained on in the surviving line."""
        consumed = row["consumed_iteration"]
        return row["state"] == "scored" and consumed is not None and self.lineage.survives(row["branch"], consumed)

    def groups(self, columns: Sequence[str] | None = None) -> Iterator[ArchivedGroup]:
        """Groups, one after the other; columns: those wanted (group_id always comes). Memory holds one group."""
        wanted = None if columns is None else list(dict.fromkeys(["group_id", *columns]))
        for file in self.files:
            yield from self._groups_of(file, wanted)

    def _groups_of(self, file: ArchiveFile, columns: list[str] | None) -> Iterator[ArchivedGroup]:
        group = ArchivedGroup("", [])
        for row in self._rows(file, columns):
            if row["group_id"] != group.group_id:
                if group.rows:
                    yield group
                group = ArchivedGroup(row["group_id"], [])
            if self._owner.get(row["group_id"]) == file.path:
                group.rows.append(row)
        if group.rows:
            yield group

    def _rows(self, file: ArchiveFile, columns: list[str] | None) -> Iterator[dict[str, Any]]:
        with self._store.reading(file.path) as opened:
            try:
                parquet = pq.ParquetFile(opened)
                metadata = parquet.schema_arrow.metadata or {}
                version = metadata.get(VERSION_KEY, b"").decode()
                if version != str(SCHEMA_VERSION):
                    raise DataError(
                        f"{file.path} has schema version {version or 'none'}; this Crescendo reads {SCHEMA_VERSION}.",
                        fix="Use the Crescendo version that wrote it.",
                    )
                chat_template = metadata.get(b"crescendo.chat_template") == b"true"
                for batch in parquet.iter_batches(batch_size=_ROWS_PER_READ, columns=columns):
                    for row in batch.to_pylist():
                        yield {**row, "chat_template": chat_template}
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{file.path} of the archive {self._store.url} is damaged: {error}", fix="Restore it from a copy."
                ) from error

    def _read_lineage(self) -> Lineage:
        stored = self._store.lineage()
        try:
            return Lineage() if stored is None else Lineage.from_dict(stored)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the lineage of the archive {self._store.url} is damaged: {error}") from error

    def _check(self, file: ArchiveFile) -> None:
        found = self._store.size(file.path)
        if found != file.num_bytes:
            state = "missing" if found < 0 else f"{found} bytes long"
            raise DataError(
                f"{file.path} of the archive {self._store.url} is {state}; its manifest says {file.num_bytes} bytes.",
                fix="Restore it from a copy, or move its manifest away to do without its groups.",
            )
