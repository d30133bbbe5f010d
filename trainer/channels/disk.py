"""Shared volume: a file in the run folder a version, for engines without shared memory with the trainer.

The file has the layout of the shm channel and is complete when the manifest names it: it is written under a
scratch name, flushed to the disk and renamed.
"""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crescendo.common.runfolder import RunFolder
from crescendo.proto.v1 import common_pb2
from crescendo.trainer.channels.base import Layout, NamedTensor, Written
from crescendo.trainer.channels.mapped import MappedFile, fill, plan


class DiskChannel:
    """Versions of one run in its folder."""

    name = "disk"

    def __init__(self, folder: RunFolder, node: str, threads: int) -> None:
        self._folder = folder.weights
        self._folder.mkdir(parents=True, exist_ok=True)
        self._node = node
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="publish")

    def _path(self, version: int) -> Path:
        return self._folder / f"w{version}.bin"

    def write(self, version: int, layout: Layout, dtype: str, tensors: Iterable[NamedTensor]) -> Written:
        """Copies, hashes and flushes; raises EnvironmentProblem when the disk is full."""
        began = time.perf_counter()
        specs, size = plan(layout, dtype)
        file = MappedFile.create(self._folder / f".w{version}.part", size)
        digest_seconds = fill(file, specs, tensors, self._pool)
        file.mapping.flush()
        file.rename(self._path(version))
        shard = common_pb2.WeightShard(address=str(file.path.resolve()), num_bytes=size, node=self._node)
        return Written([shard], specs, time.perf_counter() - began, digest_seconds)

    def retire(self, below_version: int) -> None:
        """Deletes older versions, also those of a trainer before this one."""
        for path in self._folder.glob("w*.bin"):
            number = path.stem.removeprefix("w")
            if number.isdigit() and int(number) < below_version:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the threads; files stay for engines that still read them."""
        self._pool.shutdown()
