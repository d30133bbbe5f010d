"""Parquet files, read a batch of rows at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow
import pyarrow.parquet

from crescendo.controller.data.files import locate, missing_columns, open_binary, unreadable
from crescendo.controller.data.rows import Row

_BATCH_ROWS = 1024


class ParquetSource:
    """Rows of a file, a glob or a folder of files."""

    def __init__(self, path: str, columns: Sequence[str] = ()) -> None:
        """columns: the columns to read; empty reads all."""
        self._path = path
        self._columns = list(columns)

    def rows(self) -> Iterator[Row]:
        """All rows, numbered from 1 in each file; raises DataError when a file is damaged or lacks a column."""
        filesystem, files = locate(self._path)
        for file in files:
            yield from read_parquet(filesystem, file, self._columns)


def read_parquet(filesystem: Any, file: str, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of one file on any fsspec file system."""
    with open_binary(filesystem, file, compression=None) as stream:
        number = 0
        try:
            parquet = pyarrow.parquet.ParquetFile(stream)
            present = list(parquet.schema_arrow.names)
            absent = [name for name in columns if name not in present]
            if absent:
                raise missing_columns(file, absent, present)
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns) or None):
                yield from _rows_of(batch, file, number)
                number += batch.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise unreadable(file, error) from error


def _rows_of(batch: Any, file: str, before: int) -> Iterator[Row]:
    try:
        values = batch.to_pylist()
    except UnicodeDecodeError:
        # One broken string fails the whole batch; row by row it fails alone.
        for offset in range(batch.num_rows):
            yield _single_row(batch, offset, file, before + offset + 1)
        return
    for offset, value in enumerate(values):
        yield Row(file, before + offset + 1, values=value)


def _single_row(batch: Any, offset: int, file: str, number: int) -> Row:
    try:
        return Row(file, number, values=batch.slice(offset, 1).to_pylist()[0])
    except UnicodeDecodeError:
        return Row(file, number, problem="row holds text that is not UTF-8")
