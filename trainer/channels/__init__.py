"""Weight channels by name. Another one is a file here and a line in the factory."""

import socket
from pathlib import Path

from crescendo.common.errors import RequestError
from crescendo.common.runfolder import RunFolder
from crescendo.trainer.channels.base import WeightChannel, Written
from crescendo.trainer.channels.disk import DiskChannel
from crescendo.trainer.channels.ipc import IpcChannel
from crescendo.trainer.channels.nccl import NcclChannel
from crescendo.trainer.channels.shm import ShmChannel
from crescendo.trainer.channels.tcp import TcpChannel
from crescendo.trainer.channels.transfer import Home

NAMES = ("shm", "tcp", "disk", "ipc", "nccl")


def open_channel(
    name: str, *, run_id: str, run_folder: Path, threads: int, token: str = "", home: Home | None = None
) -> WeightChannel:
    """The channel of that name; raises RequestError for an unknown one.

    token: of the run, for those that serve; home: of tensors that are sent from where they are.
    """
    node = socket.gethostname()
    if name == "shm":
        return ShmChannel(run_id, node, threads)
    if name == "disk":
        return DiskChannel(RunFolder(run_folder), node, threads)
    if name == "tcp":
        return TcpChannel(node, threads, token)
    if name == "ipc":
        return IpcChannel(run_id, node, token, home)
    if name == "nccl":
        return NcclChannel(run_id, node, token, home)
    raise RequestError(
        f"channel is {name!r}; it must be one of {', '.join(NAMES)}.",
        field="trainer.weight_channel",
        fix="Set trainer.weight_channel to shm or ipc on one machine, to nccl or tcp between machines.",
    )


__all__ = ["NAMES", "WeightChannel", "Written", "open_channel"]
