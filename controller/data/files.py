"""Opening data files, local or remote, with errors that say what to do."""

from collections.abc import Sequence
from typing import Any, BinaryIO, cast

import fsspec

from crescendo.common.errors import DataError


def locate(path: str) -> tuple[Any, list[str]]:
    """The file system and the sorted files of a path, a glob or a folder; raises DataError when there is none."""
    try:
        filesystem, root = fsspec.core.url_to_fs(path)
        if filesystem.isdir(root):
            root = f"{root.rstrip('/')}/*"
        found = sorted(filesystem.glob(root)) if any(mark in root for mark in "*?[") else [root]
        files = [name for name in found if filesystem.isfile(name)]
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(path, error) from error
    if not files:
        raise DataError(
            f"the data file {path} does not exist.",
            field="data.path",
            fix="Correct the path (relative paths start at the working directory), or set it: "
            "--set data.train.path=FILE.",
        )
    return filesystem, files


def open_binary(filesystem: Any, file: str, compression: str | None = "infer") -> BinaryIO:
    """Opens a file for reading; .gz, .bz2, .xz and .zst are unpacked on the way."""
    try:
        return cast(BinaryIO, filesystem.open(file, "rb", compression=compression))
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from error


def unreadable(path: str, error: Exception) -> DataError:
    """The error for a file that is there but cannot be read."""
    return DataError(
        f"the data file {path} cannot be read: {error}.",
        field="data.path",
        fix="Check the file's permissions and format, and that the path names what data.*.name says.",
    )


def missing_columns(file: str, wanted: Sequence[str], present: Sequence[str]) -> DataError:
    """The error for a file that lacks columns which every row needs."""
    return DataError(
        f"{file} has no column {', '.join(repr(name) for name in wanted)}; it has: {', '.join(present) or 'none'}.",
        field="data.columns",
        fix="Map our fields to the data set's columns, as in data.train.columns.question=problem.",
    )
