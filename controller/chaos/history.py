"""What the embedded server's append-only file remembers: every change of a run, in order, also what was trimmed.

The audit reads it as a witness that no process of the run can revise. Only the incremental files are read: a base
file says how the history looked when the server rewrote it, and what lies below that is then gone
(`History.complete` is false). An external server's file is not ours to read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hiredis

from crescendo.buffer.keys import Keys
from crescendo.common.types import GroupId
from crescendo.proto.v1 import trainer_pb2

_READ_BYTES = 1 << 20
_FOLDER = "appendonlydir"
_MANIFEST = "appendonly.aof.manifest"


@dataclass
class History:
    """Groups ever opened, and batches ever recorded by (branch, iteration); more than one is a broken promise."""

    complete: bool = False
    opened: set[GroupId] = field(default_factory=set)
    batches: dict[tuple[int, int], list[trainer_pb2.TrainBatch]] = field(default_factory=dict)


def read_history(buffer_folder: Path, run_id: str) -> History:
    """The history of a run folder's embedded server; empty and not complete when there is none."""
    folder = buffer_folder / _FOLDER
    if not (folder / _MANIFEST).exists():
        return History()
    lines = [line.split() for line in (folder / _MANIFEST).read_text().splitlines() if line]
    files = [folder / words[1] for words in lines if words[-1] == "i"]
    bases = [words for words in lines if words[-1] == "b"]
    # The first base file is written when the server starts with nothing.
    history = History(complete=all(words[3] == "1" for words in bases))
    prefix = Keys(run_id).prefix.encode()
    for path in files:
        for words in _commands(path):
            if len(words) > 3 and words[0].upper() in (b"HSET", b"HMSET") and words[1].startswith(prefix):
                _take(history, words[1][len(prefix) :].decode(), words[2:])
    return history


def _take(history: History, key: str, pairs: list[bytes]) -> None:
    kind, _, name = key.partition(":")
    if kind == "records":
        history.opened |= {GroupId(group.decode()) for group in pairs[::2]}
    if kind == "redo":
        for iteration, packed in zip(pairs[::2], pairs[1::2], strict=True):
            batch = trainer_pb2.TrainBatch.FromString(packed)
            known = history.batches.setdefault((int(name), int(iteration)), [])
            if batch not in known:
                known.append(batch)


def _commands(path: Path) -> Iterator[list[bytes]]:
    """The commands of a file; a torn last one, as a killed server leaves it, is passed over."""
    reader = hiredis.Reader()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            reader.feed(chunk)
            while (words := reader.gets()) is not False:
                yield words
