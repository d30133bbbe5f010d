"""Rows that are set aside: written down with their reasons, counted, and too many of them an error."""

from collections.abc import Callable, Mapping
from typing import Any

from crescendo.common.errors import DataError
from crescendo.controller.data.rows import Row

# Where the rows go; JsonlWriter.write on the run folder's quarantine.jsonl.
QuarantineSink = Callable[[Mapping[str, Any]], None]

_SHOWN_REASONS = 3
_SHOWN_CHARACTERS = 300


class Quarantine:
    """Collects the bad rows of one source."""

    def __init__(self, field: str, sink: QuarantineSink | None = None) -> None:
        """field: the config section that the rows belong to, such as data.train."""
        self._field = field
        self._sink = sink
        self._first: list[str] = []
        self._files: list[str] = []
        self.num_rows = 0
        self.num_bad = 0

    def saw(self) -> None:
        """Counts a row that was read."""
        self.num_rows += 1

    def add(self, row: Row, reason: str) -> None:
        """Sets a row aside."""
        self.num_bad += 1
        if len(self._first) < _SHOWN_REASONS:
            self._first.append(f"row {row.number}: {reason}")
        if row.file not in self._files:
            self._files.append(row.file)
        if self._sink is not None:
            excerpt = repr(dict(row.values))[:_SHOWN_CHARACTERS]
            entry = {"source": self._field, "file": row.file, "row": row.number, "reason": reason, "excerpt": excerpt}
            self._sink(entry)

    def check(self, max_bad_share: float) -> None:
        """Raises DataError when more than max_bad_share of the rows read were set aside."""
        if not self.num_rows or self.num_bad <= max_bad_share * self.num_rows:
            return
        share = self.num_bad / self.num_rows
        reasons = "; ".join(reason.rstrip(".") for reason in self._first)
        raise DataError(
            f"{self._field}: {self.num_bad} of {self.num_rows} rows of {', '.join(self._files[:3])} were set aside "
            f"({share:.1%}; data.max_bad_rows allows {max_bad_share:.1%}). First: {reasons}.",
            field=self._field,
            fix=f"Repair the rows (quarantine.jsonl in the run folder lists them), correct {self._field}.columns, "
            "or raise data.max_bad_rows.",
        )
