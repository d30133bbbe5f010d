"""Shared memory: a file in /dev/shm a version, read by engines on this machine.

A version that has been retired keeps its pages warm as a spare and becomes the next one by renaming, so that
publishing copies into memory that is mapped already. At least the newest version stays readable while the next
is written. An engine that still reads a retired file would see its digests change, and be refused.
"""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from crescendo.common.weights import SHM_FOLDER, shm_path, stale_shm_files
from crescendo.proto.v1 import common_pb2
from crescendo.trainer.channels.base import Layout, NamedTensor, Written
from crescendo.trainer.channels.mapped import MappedFile, fill, plan


class ShmChannel:
    """Versions of one run in /dev/shm. Owned by the trainer's rank that speaks."""

    name = "shm"

    def __init__(self, run_id: str, node: str, threads: int) -> None:
        self._run_id = run_id
        self._node = node
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="publish")
        self._files: dict[int, MappedFile] = {}
        self._spare: MappedFile | None = None
        for path in stale_shm_files(run_id):  # of a trainer that died
            path.unlink(missing_ok=True)

    def write(self, version: int, layout: Layout, dtype: str, tensors: Iterable[NamedTensor]) -> Written:
        """Copies and hashes; raises EnvironmentProblem when shared memory is full."""
        began = time.perf_counter()
        specs, size = plan(layout, dtype)
        file = self._take(version, size)
        digest_seconds = fill(file, specs, tensors, self._pool)
        shard = common_pb2.WeightShard(address=str(file.path), num_bytes=size, node=self._node)
        return Written([shard], specs, time.perf_counter() - began, digest_seconds)

    def _take(self, version: int, size: int) -> MappedFile:
        path = shm_path(self._run_id, version)
        spare, self._spare = self._spare, None
        again = self._files.pop(version, None)  # a repeated publish of the same version
        if again is not None and again.size == size:
            file = again
        elif spare is not None and spare.size == size:
            spare.rename(path)
            file = spare
        else:
            for unfit in (spare, again):
                if unfit is not None:
                    unfit.remove()
            file = MappedFile.create(path, size)
        self._files[version] = file
        return file

    def retire(self, below_version: int) -> None:
        """Takes older versions out of sight; the newest of them is kept as the spare."""
        for version in sorted(v for v in self._files if v < below_version):
            file = self._files.pop(version)
            if self._spare is not None:
                self._spare.remove()
            file.rename(SHM_FOLDER / f"crescendo-{self._run_id}-spare")
            self._spare = file

    def close(self) -> None:
        """Deletes all files."""
        for file in (*self._files.values(), *((self._spare,) if self._spare else ())):
            file.remove()
        self._files, self._spare = {}, None
        self._pool.shutdown()
