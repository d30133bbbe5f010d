"""Data sets on the Hugging Face hub, streamed as Parquet.

Looks for the data set's own Parquet files first, then for the branch to which the hub converts every public data
set. huggingface_hub is imported only when a hub data set is read.
"""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from crescendo.common.errors import CrescendoError, DataError
from crescendo.controller.data.parquet import read_parquet
from crescendo.controller.data.rows import Row

# Source: huggingface.co/docs/dataset-viewer/parquet ("refs/convert/parquet", folders <subset>/<split>/).
_CONVERTED = "refs/convert/parquet"


class HubSource:
    """Rows of one split of a hub data set."""

    def __init__(
        self, name: str, subset: str, split: str, columns: Sequence[str] = (), filesystem: Any | None = None
    ) -> None:
        """name: `owner/name`, with `@revision` if wanted; filesystem: fsspec's, None for the hub itself."""
        self._name, _, self._revision = name.partition("@")
        self._subset = subset
        self._split = split
        self._columns = list(columns)
        self._filesystem = filesystem

    def rows(self) -> Iterator[Row]:
        """All rows of the split; raises DataError when the hub cannot be reached or has no such split."""
        try:
            filesystem = self._filesystem if self._filesystem is not None else _hub_filesystem()
            files = self._files(filesystem)
            for file in files:
                yield from read_parquet(filesystem, file, self._columns)
        except CrescendoError:
            raise
        except Exception as error:  # the hub's client raises errors of several HTTP libraries
            raise DataError(
                f"the hub data set {self._name} cannot be read: {type(error).__name__}: {error}.",
                field="data.path",
                fix="Check the name and the network; with a copy on disk use --set data.train.name=jsonl (or parquet) "
                "--set data.train.path=FILE.",
            ) from error

    def _files(self, filesystem: Any) -> list[str]:
        revisions = [self._revision] if self._revision else ["", _CONVERTED]
        seen: list[str] = []
        for revision in revisions:
            root = f"datasets/{self._name}" + (f"@{quote(revision, safe='')}" if revision else "")
            found = sorted(filesystem.glob(f"{root}/**/*.parquet"))
            seen += found
            chosen = [file for file in found if self._matches(file, root)]
            if chosen:
                self._check_one_subset(chosen, root)
                return chosen
        raise DataError(
            f"the hub data set {self._name} has no Parquet files for subset {self._subset or '(any)'!r}, "
            f"split {self._split!r}; it has {len(seen)} Parquet files" + (f", such as {seen[0]}." if seen else "."),
            field="data.split",
            fix="Correct data.*.subset and data.*.split as the data set's page shows them.",
        )

    def _matches(self, file: str, root: str) -> bool:
        parts = PurePosixPath(_below(file, root))
        folders, stem = parts.parts[:-1], parts.stem
        in_subset = not self._subset or self._subset in folders
        names = (self._split, f"partial-{self._split}")
        return in_subset and (
            stem == self._split or stem.startswith(f"{self._split}-") or any(name in folders for name in names)
        )

    def _check_one_subset(self, files: Sequence[str], root: str) -> None:
        folders = {PurePosixPath(_below(file, root)).parts[:-1][:1] for file in files}
        if not self._subset and len(folders) > 1:
            names = ", ".join(sorted("/".join(folder) for folder in folders if folder))
            raise DataError(
                f"the hub data set {self._name} has several subsets: {names}.",
                field="data.subset",
                fix="Choose one: --set data.train.subset=NAME.",
            )


def _below(file: str, root: str) -> str:
    return file[len(root) + 1 :] if file.startswith(f"{root}/") else file


def _hub_filesystem() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()
