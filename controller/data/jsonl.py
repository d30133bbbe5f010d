"""JSON lines, one object a line; also a file that is one JSON array of objects."""

import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from crescendo.controller.data.files import locate, open_binary, unreadable
from crescendo.controller.data.rows import Row

# A longer line is set aside instead of being held in memory.
_MAX_LINE_BYTES = 16 << 20


class JsonlSource:
    """Rows of a file, a glob or a folder of files."""

    def __init__(self, path: str) -> None:
        self._path = path

    def rows(self) -> Iterator[Row]:
        """One row a line; empty lines are passed over, lines that are no JSON object are rows with a problem."""
        filesystem, files = locate(self._path)
        for file in files:
            try:
                with open_binary(filesystem, file) as stream:
                    array = _read_array(stream)
                    if array is None:
                        yield from _read_lines(file, stream)
                    else:
                        for number, value in enumerate(array, 1):
                            yield _row(file, number, value)
            except (OSError, EOFError, zlib.error) as error:
                raise unreadable(file, error) from error


def _read_array(stream: BinaryIO) -> list[Any] | None:
    """The file's one JSON array; None, and the stream at its start, when the file is something else."""
    while (byte := stream.read(1)).isspace():
        pass
    stream.seek(0)
    if byte != b"[":
        return None
    try:
        loaded: list[Any] = json.load(stream)
    except (ValueError, RecursionError):
        # JSON lines of which the first holds a list, say: line by line, the broken ones are found.
        stream.seek(0)
        return None
    return loaded


def _read_lines(file: str, stream: BinaryIO) -> Iterator[Row]:
    number = 0
    while line := stream.readline(_MAX_LINE_BYTES):
        number += 1
        if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(_MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield Row(file, number, problem=f"line is longer than {_MAX_LINE_BYTES} bytes")
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            yield Row(file, number, problem="line is not UTF-8")
        except (ValueError, RecursionError) as error:
            yield Row(file, number, problem=f"line is not JSON: {error}"[:200])
        else:
            yield _row(file, number, value)


def _row(file: str, number: int, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(file, number, values=value)
    return Row(file, number, problem=f"row is a JSON {type(value).__name__}, not an object")
