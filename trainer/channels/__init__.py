"""Weight channels by name. Another one (ipc, nccl, tcp) is a file here and a line in the factory."""

import socket
from pathlib import Path

from crescendo.common.errors import RequestError
from crescendo.common.runfolder import RunFolder
from crescendo.trainer.channels.base import WeightChannel, Written
from crescendo.trainer.channels.disk import DiskChannel
from crescendo.trainer.channels.shm import ShmChannel

NAMES = ("shm", "disk")


def open_channel(name: str, *, run_id: str, run_folder: Path, threads: int) -> WeightChannel:
    """The channel of that name; raises RequestError for an unknown one."""
    node = socket.gethostname()
    if name == "shm":
        return ShmChannel(run_id, node, threads)
    if name == "disk":
        return DiskChannel(RunFolder(run_folder), node, threads)
    raise RequestError(
        f"channel is {name!r}; it must be one of {', '.join(NAMES)}.",
        field="trainer.weight_channel",
        fix="Set trainer.weight_channel to shm on one machine, to disk on a shared volume.",
    )


__all__ = ["NAMES", "WeightChannel", "Written", "open_channel"]
