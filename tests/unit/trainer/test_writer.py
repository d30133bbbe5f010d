"""Checkpoints written beside training: files once, errors once, by path."""

import errno
import threading

import pytest

from crescendo.common.errors import CrescendoError, DiskFullError, RequestError
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer.writer import Files, Writer

FILE = trainer_pb2.CheckpointFile(path="part0.safetensors", num_bytes=3)


@pytest.fixture
def writer() -> Writer:
    return Writer()


def test_start_returns_at_once_and_finish_waits(writer: Writer) -> None:
    go = threading.Event()

    def write() -> Files:
        assert go.wait(10)
        return [FILE]

    writer.start("a", write)
    writer.start("b", list)
    go.set()
    writer.wait("a")
    assert writer.finish("a")[0] == [FILE]
    assert writer.finish("b")[0] == []
    with pytest.raises(RequestError, match="no checkpoint is being written to a"):
        writer.finish("a")
    writer.close()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, CrescendoError)]
)
def test_what_stopped_it_is_told_by_finish(writer: Writer, number: int, kind: type[CrescendoError]) -> None:
    def write() -> Files:
        raise OSError(number, "told")

    writer.start("a", write)
    writer.wait("a")
    with pytest.raises(kind, match="told"):
        writer.finish("a")
    writer.close()
