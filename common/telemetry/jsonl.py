"""Append-only JSON lines: metrics, events, samples, quarantine."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class JsonlWriter:
    """Appends one JSON object a line; each write is one system call, so a crash leaves at most a torn last line.

    What a full disk does not take is kept and written with the next row that it takes.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._pending = b""
        self._end_torn_line(path)

    def _end_torn_line(self, path: Path) -> None:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                os.write(self._descriptor, b"\n")

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row."""
        self._pending += (json.dumps(row, ensure_ascii=False) + "\n").encode()
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._descriptor, self._pending) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def close(self) -> None:
        """Ends the file."""
        os.close(self._descriptor)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file; nothing if it is not there; torn lines are passed over."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row
