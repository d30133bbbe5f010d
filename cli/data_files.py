"""Prompt sets as `crescendo data` reads and writes them.

Rows are read by the rules of a run (controller/data): what a run would set aside is refused here for the same reason.
Output files appear when everything is written; an interrupted command leaves none.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from crescendo.common.config.schema import DataSourceConfig
from crescendo.common.errors import DataError
from crescendo.controller.data import Row, Source, open_source
from crescendo.controller.data.fields import BadRow, Columns, gold_answers, identity
from crescendo.reward_service.data import Question

QUESTION_COLUMNS = ("question", "problem", "prompt")
_PARQUET = (".parquet", ".pq")
_EXCERPT = 300


@dataclass(frozen=True)
class Entry:
    """A row, and the question in it or why there is none."""

    row: Row
    question: Question | None
    reason: str = ""

    @property
    def excerpt(self) -> str:
        """The row's beginning, for the file of removed rows."""
        return repr(dict(self.row.values))[:_EXCERPT]


class PromptFile:
    """One prompt set; `entries` may be called again."""

    def __init__(self, path: str, options: argparse.Namespace, *, needs_answer: bool = True) -> None:
        """Raises DataError when the file is missing, unreadable, empty, or lacks the columns."""
        self.path = path
        is_parquet = Path(path).suffix in _PARQUET
        config = DataSourceConfig(name="parquet" if is_parquet else "jsonl", path=path)
        self._source: Source = open_source(config)
        self._marker = options.answer_after
        columns = self._columns(options, needs_answer)
        self._needs_answer = needs_answer
        config.columns = columns
        self._columns_of = Columns(config, ("question", "answer") if needs_answer else ("question",), ("id",))
        self.columns: Mapping[str, str] = columns

    def entries(self) -> Iterator[Entry]:
        """Every row in order."""
        for row in self._source.rows():
            try:
                yield Entry(row, self._question(row))
            except BadRow as error:
                yield Entry(row, None, str(error))

    def count(self) -> int:
        """Rows, by reading them all."""
        return sum(1 for _ in self._source.rows())

    def _question(self, row: Row) -> Question:
        if row.problem:
            raise BadRow(row.problem)
        text = self._columns_of.text(row.values, "question").strip()
        golds: list[str] = []
        if self._needs_answer:
            answer = self._columns_of.get(row.values, "answer")
            if answer is None:
                raise BadRow(f"answer is missing (column {self.columns['answer']!r})")
            golds = gold_answers(answer, self._marker)
        given = self._columns_of.get(row.values, "id")
        return Question(Path(row.file).name, row.number, identity(given, text, golds), text, tuple(golds))

    def _columns(self, options: argparse.Namespace, needs_answer: bool) -> dict[str, str]:
        present = next((list(row.values) for row in self._source.rows() if not row.problem), None)
        if present is None:
            raise DataError(f"{self.path} has no readable row.", field="file", fix="Give JSON lines or Parquet.")
        usual = [name for name in QUESTION_COLUMNS if name in present]
        columns = {"question": options.question or (usual[0] if usual else QUESTION_COLUMNS[0])}
        if not needs_answer and columns["question"] not in present and usual:
            columns["question"] = usual[0]  # a test set with other names than the training set's
        if needs_answer:
            columns["answer"] = options.answer or "answer"
        if options.id and needs_answer:
            columns["id"] = options.id
        for name, column in columns.items():
            if column not in present:
                raise DataError(
                    f"{self.path} has no column {column!r} for the {name}; it has: {', '.join(present)}.",
                    field=name,
                    fix=f"Name it with --{name} COLUMN.",
                )
        return columns


class Output:
    """`with Output(...)`: kept rows go to the file, removed ones beside it; both appear at the end, or not at all."""

    def __init__(self, out: Path | None, *, force: bool) -> None:
        """out: None writes nothing. Raises DataError when a file is there already."""
        self.out = out
        self.removed = None if out is None else out.with_name(out.name + ".removed.jsonl")
        self.report = None if out is None else out.with_name(out.name + ".report.json")
        if out is None:
            return
        if not out.parent.is_dir():
            raise DataError(f"{out.parent} is not a folder.", field="out", fix="Make it, or choose another --out.")
        if out.exists() and not force:
            raise DataError(f"{out} exists.", field="out", fix="Choose another --out, or overwrite it with --force.")

    def __enter__(self) -> "Output":
        self._rows: list[dict[str, Any]] = []
        self._open: dict[Path, IO[str]] = {}
        if self.out is not None and self.removed is not None:
            try:
                for path in (self.out, self.removed):
                    self._open[path] = open(_unfinished(path), "w", encoding="utf-8")
            except OSError as error:
                self.__exit__(OSError, error, None)
                raise DataError(f"{path} cannot be written: {error.strerror}.", field="out") from None
        return self

    def keep(self, entry: Entry, extra: Mapping[str, Any] | None = None) -> None:
        """Writes a row as it was, and `extra` columns."""
        if self.out is None:
            return
        values = {**entry.row.values, **(extra or {})}
        if self.out.suffix in _PARQUET:
            self._rows.append(values)
        else:
            _write(self._open[self.out], values)

    def remove(self, record: Mapping[str, Any]) -> None:
        """Writes why a row went."""
        if self.removed is not None:
            _write(self._open[self.removed], record)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path, file in self._open.items():
            file.close()
            if kind is None:
                if path.suffix in _PARQUET:
                    write_parquet(self._rows, _unfinished(path))
                os.replace(_unfinished(path), path)
            else:
                _unfinished(path).unlink(missing_ok=True)


def write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """All rows; raises DataError when a column holds values of different types."""
    import pyarrow
    import pyarrow.parquet

    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    except pyarrow.ArrowException as error:
        raise DataError(f"the rows do not fit Parquet: {error}.", field="out", fix="Choose a --out *.jsonl.") from None


def default_out(path: str, action: str) -> Path:
    """FILE.ACTION.jsonl, or .parquet, in the working directory's view of the file's folder."""
    source = Path(path)
    name = source.name
    for suffix in (".gz", ".bz2", ".xz", ".zst", ".jsonl", ".json", *_PARQUET):
        name = name.removesuffix(suffix)
    return source.with_name(f"{name}.{action}{'.parquet' if source.suffix in _PARQUET else '.jsonl'}")


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _write(file: IO[str], values: Mapping[str, Any]) -> None:
    line = json.dumps(values, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # a lone surrogate in some column: only escapes can carry it
        line = json.dumps(values, default=str)
    file.write(line + "\n")
