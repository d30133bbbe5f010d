"""The archive's folder: which file is where, and how one comes to count. Everything goes through fsspec.

    data/b<branch>-i<iteration>-t<token>-n<number>.parquet     counts only when a manifest names it
    manifests/t<token>-n<number>.json                          one a sweep: the files that it wrote
    lineage/t<token>.json                                      weight versions and branches; the highest token counts

token: of the archiver that wrote it (issued by the buffer), so two archivers never write one file. A manifest
appears whole: by a rename in a local folder, by one upload in an object store. Nothing is ever changed or removed,
but an archiver's own lineage file.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from crescendo.common.errors import ConfigError, DataError, EnvironmentProblem
from crescendo.common.runfolder import sync, write_atomically

log = logging.getLogger(__name__)

MANIFEST_VERSION = 1


@dataclass(frozen=True)
class ArchiveFile:
    """One Parquet file as its manifest names it. groups: group id to its state when it was written."""

    path: str
    branch: int
    iteration: int
    num_bytes: int
    num_trajectories: int
    num_tokens: int
    groups: dict[str, str]


@dataclass(frozen=True)
class ArchiveManifest:
    """What one sweep added. commit: (branch, iteration) that the buffer stood at."""

    run_id: str
    token: int
    number: int
    commit: tuple[int, int]
    files: list[ArchiveFile] = field(default_factory=list)
    manifest_version: int = MANIFEST_VERSION


class ArchiveStore:
    """One archive. Blocking: asyncio code calls it in a thread."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"the archive {url!r} can't be opened: {error}",
                field="archive.url",
                fix="Give a folder or a URL that fsspec knows; install the package (s3fs, gcsfs, ...) it asks for.",
            ) from None
        self._is_local = isinstance(self._fs, LocalFileSystem)

    @staticmethod
    def data_path(branch: int, iteration: int, token: int, number: int) -> str:
        """Name of a Parquet file."""
        return f"data/b{branch:03d}-i{iteration:06d}-t{token:06d}-n{number:06d}.parquet"

    def create(self, path: str, schema: pa.Schema) -> "DataFile":
        """A new Parquet file to write to; raises EnvironmentProblem when it can't be made."""
        return DataFile(self._fs, self._full(path), schema, sync=self._is_local)

    def reading(self, path: str) -> Any:
        """A file opened for reading; the caller closes it."""
        return self._fs.open(self._full(path), "rb")

    def size(self, path: str) -> int:
        """Bytes of a file; -1 when it is not there."""
        try:
            return int(self._fs.info(self._full(path))["size"])
        except FileNotFoundError:
            return -1

    def put_manifest(self, manifest: ArchiveManifest) -> None:
        """Makes the files of a sweep count."""
        self._put(f"manifests/t{manifest.token:06d}-n{manifest.number:06d}.json", asdict(manifest))

    def manifests(self) -> list[ArchiveManifest]:
        """All manifests, in the order of (token, number); raises DataError for a damaged or foreign one."""
        found = []
        for name in self._names("manifests"):
            stored = self._get(name)
            try:
                if stored["manifest_version"] != MANIFEST_VERSION:
                    raise DataError(
                        f"{self.url}/{name} has version {stored['manifest_version']}; this Crescendo reads "
                        f"{MANIFEST_VERSION}.",
                        fix="Use the Crescendo version that wrote it.",
                    )
                stored["files"] = [ArchiveFile(**file) for file in stored["files"]]
                stored["commit"] = tuple(stored["commit"])
                found.append(ArchiveManifest(**stored))
            except (KeyError, TypeError) as error:
                raise self._damaged(name, error) from error
        return found

    def put_lineage(self, token: int, lineage: dict[str, Any]) -> None:
        """Replaces this archiver's lineage file."""
        self._put(f"lineage/t{token:06d}.json", lineage)

    def lineage(self) -> dict[str, Any] | None:
        """The newest archiver's lineage; None when there is none."""
        names = self._names("lineage")
        return self._get(names[-1]) if names else None

    def _names(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()
        full = self._full(folder)
        if not self._fs.isdir(full):
            return []
        names = [os.path.basename(str(path)) for path in self._fs.ls(full, detail=False)]
        return sorted(f"{folder}/{name}" for name in names if name.endswith(".json") and not name.startswith("."))

    def _put(self, name: str, value: dict[str, Any]) -> None:
        text = json.dumps(value)
        full = self._full(name)
        with _explained(full):
            if self._is_local:
                Path(full).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(Path(full), text)
            else:
                self._fs.pipe_file(full, text.encode())

    def _get(self, name: str) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = json.loads(self._fs.cat_file(self._full(name)))
        except ValueError as error:
            raise self._damaged(name, error) from error
        return loaded

    def _damaged(self, name: str, error: Exception) -> DataError:
        return DataError(
            f"{self.url}/{name} is damaged: {error!r}.", fix="Restore it from a copy, or move it away to do without."
        )

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"


class DataFile:
    """A Parquet file being written. Lives until `close` or `discard`; counts only when a manifest names it."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, schema: pa.Schema, *, sync: bool) -> None:
        self._fs = fs
        self._path = path
        self._sync = sync
        with _explained(path):
            fs.makedirs(os.path.dirname(path), exist_ok=True)
            self._file = fs.open(path, "wb")
            self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")

    def write(self, rows: pa.RecordBatch) -> None:
        """Appends rows; raises EnvironmentProblem when there is no space."""
        with _explained(self._path):
            self._writer.write_batch(rows)

    def close(self) -> int:
        """Ends the file, on the disk or uploaded; returns its bytes."""
        with _explained(self._path):
            self._writer.close()
            self._file.close()
            if self._sync:
                path = Path(self._path)
                sync(path, path.parent)
            return int(self._fs.info(self._path)["size"])

    def discard(self) -> None:
        """Lets go of a file that failed; what was written of it stays, and nothing names it."""
        for opened in (self._writer, self._file):
            try:
                opened.close()
            except OSError as error:
                log.warning("%s: %s", self._path, error)


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turns what a file system raises into an EnvironmentProblem."""
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"{path} can't be written: {error}",
            field="archive.url",
            fix="Free space there, or correct its permissions; the buffer keeps everything until it succeeds.",
        ) from error
