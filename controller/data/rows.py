"""The seam between data sources and what is made of their rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Row:
    """One row of a source.

    number counts from 1 within `file`; problem says why the row cannot be read (then values is empty); metadata is
    what scorers may read.
    """

    file: str
    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


class Source(Protocol):
    """A data source. Rows come one at a time, in an order that never changes, so a big file is never held whole."""

    def rows(self) -> Iterator[Row]:
        """All rows; raises DataError when the source itself cannot be read."""
        ...
