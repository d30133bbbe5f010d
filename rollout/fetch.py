"""Brings a version's bytes onto this node, over the channel `tcp`, into shared memory that its engines map.

    UpdateWeights -> localize: lock of the node -> buckets over a few connections -> complete file -> manifest as `shm`

The first engine of a node fetches, the others wait for its file. There is one copy on a node: the next version is
received into the file of the one before, whose pages are warm already. A connection that breaks is made again and goes
on with the byte that is missing; a fetch that failed is gone on with by the next call. Blocks: the service runs it in
a thread. `close` removes the node's files.
"""

import fcntl
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from crescendo.common.errors import CrescendoError, DeadlineError, EnvironmentProblem, RequestError, WorkerLostError
from crescendo.common.rpc.wire import Deadline, Wire, connect, raise_error
from crescendo.common.weights import SHM_FOLDER
from crescendo.proto.v1 import common_pb2, weights_pb2
from crescendo.rollout.engine.shards import STREAMED_CHANNELS

FETCHED_CHANNELS = ("tcp",)
BUCKET_BYTES = 32 << 20
CONNECTIONS = 2  # so that one request is on its way while the other's bytes come
RETRIES = 5  # connections in a row that brought nothing
RETRY_S = 0.2
LOCK_POLL_S = 0.02


@dataclass
class _Part:
    """A shard on its way. todo: stretches that are missing; a broken connection puts its rest back."""

    address: str
    path: Path
    view: memoryview
    todo: "deque[tuple[int, int]]" = field(default_factory=deque)


class NodeCopy:
    """The node's copy of a run's fetched weights, as this process sees it."""

    def __init__(self, run_id: str, token: str) -> None:
        self._prefix = f"crescendo-{run_id}-node"
        self._token = token
        self._mappings: dict[tuple[int, int], memoryview] = {}
        self._unfinished: tuple[int, dict[int, _Part]] = (0, {})

    def localize(
        self, manifest: common_pb2.WeightManifest, fence: common_pb2.Fence, deadline_s: float
    ) -> common_pb2.WeightManifest:
        """The manifest with shards on this node; those that are there already come back as they are.

        One that the engine streams by itself gets what it needs to ask for it.

        Raises WorkerLostError when a shard's server is gone, DeadlineError, StaleFenceError or RequestError as the
        server says, EnvironmentProblem when shared memory is full.
        """
        if manifest.channel not in (*FETCHED_CHANNELS, *STREAMED_CHANNELS):
            return manifest
        deadline = Deadline.after(deadline_s)
        local = common_pb2.WeightManifest()
        local.CopyFrom(manifest)
        if manifest.channel in STREAMED_CHANNELS:
            access = weights_pb2.WeightRequest(fence=fence, token=self._token, version=manifest.version)
            local.access = access.SerializeToString()
            return local
        local.channel = "shm"
        with self._alone(deadline):
            for index, shard in enumerate(local.shards):
                path = self._path(manifest, index)
                if not (path.exists() and path.stat().st_size >= shard.num_bytes):
                    self._fetch(manifest, index, path, fence, deadline)
                shard.address = str(path)
        return local

    def discard(self, manifest: common_pb2.WeightManifest) -> None:
        """Forgets a version whose digests do not match, so that it is fetched anew."""
        for index in range(len(manifest.shards)):
            self._path(manifest, index).unlink(missing_ok=True)
        self._unfinished = (0, {})

    def close(self) -> None:
        """Removes the node's files; engines that have them mapped keep what they have."""
        self._mappings.clear()
        self._unfinished = (0, {})
        for path in SHM_FOLDER.glob(f"{self._prefix}-*"):
            path.unlink(missing_ok=True)

    def _path(self, manifest: common_pb2.WeightManifest, index: int) -> Path:
        return SHM_FOLDER / f"{self._prefix}-w{manifest.version}-{manifest.digest:016x}-{index}"

    @contextmanager
    def _alone(self, deadline: Deadline) -> Iterator[None]:
        """Holds the node's lock; the kernel frees that of a process that died."""
        with (SHM_FOLDER / f"{self._prefix}-lock").open("a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if deadline.passed:
                        raise DeadlineError("another engine of this node still fetches the weights.") from None
                    time.sleep(LOCK_POLL_S)
            yield

    def _fetch(
        self,
        manifest: common_pb2.WeightManifest,
        index: int,
        path: Path,
        fence: common_pb2.Fence,
        deadline: Deadline,
    ) -> None:
        digest, parts = self._unfinished
        if digest != manifest.digest:
            parts = {}
            self._unfinished = (manifest.digest, parts)
        if index not in parts:
            parts[index] = self._begin(manifest, index, path)
        part = parts[index]
        request = weights_pb2.WeightRequest(fence=fence, token=self._token, version=manifest.version)
        stop = threading.Event()
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch") as pool:
            jobs = [pool.submit(_drain, part, request, deadline, stop) for _ in range(CONNECTIONS)]
            errors = [error for job in jobs if (error := job.exception()) is not None]
        if errors:
            raise errors[0]
        part.path.rename(path)
        del parts[index]

    def _begin(self, manifest: common_pb2.WeightManifest, index: int, path: Path) -> _Part:
        """Space for a shard: the same shard's file of the version before, if it has the same size, else a new one."""
        shard = manifest.shards[index]
        scratch = SHM_FOLDER / f"{self._prefix}-part-{index}"
        old = [one for one in SHM_FOLDER.glob(f"{self._prefix}-w*-{index}") if one != path]
        fits = next((one for one in old if one.stat().st_size == shard.num_bytes), None)
        if fits is not None:
            fits.rename(scratch)
        for one in old:
            one.unlink(missing_ok=True)
        view = self._map(scratch, shard.num_bytes)
        todo = deque((at, min(BUCKET_BYTES, shard.num_bytes - at)) for at in range(0, shard.num_bytes, BUCKET_BYTES))
        return _Part(shard.address, scratch, view, todo)

    def _map(self, path: Path, size: int) -> memoryview:
        if size <= 0:
            raise RequestError(f"a shard of {size} bytes cannot be fetched.", field="manifest.shards.num_bytes")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Reserves the space now: writing to a full tmpfs through a mapping would be a fatal signal.
            os.posix_fallocate(descriptor, 0, size)
            os.ftruncate(descriptor, size)
            inode = os.fstat(descriptor).st_ino
            if (inode, size) not in self._mappings:
                self._mappings.clear()
                self._mappings[inode, size] = memoryview(mmap.mmap(descriptor, size))
            return self._mappings[inode, size]
        except OSError as error:
            path.unlink(missing_ok=True)
            raise EnvironmentProblem(
                f"no space for {size} bytes of weights in {SHM_FOLDER}: {error.strerror}.",
                fix="Give the pod a larger /dev/shm (an emptyDir with medium Memory).",
            ) from None
        finally:
            os.close(descriptor)


def _drain(part: _Part, request: weights_pb2.WeightRequest, deadline: Deadline, stop: threading.Event) -> None:
    """Fetches stretches until none is left; raises when the server refuses or stays away."""
    failures = 0
    wire: Wire | None = None
    try:
        while part.todo and not stop.is_set():
            try:
                offset, size = part.todo.popleft()
            except IndexError:
                return
            received = 0
            try:
                if wire is None:
                    wire = connect(part.address, deadline)
                for count in _bucket(wire, request, part.view, offset, size, deadline):
                    received += count
                    failures = 0
            except CrescendoError as error:
                part.todo.appendleft((offset + received, size - received))
                failures += 1
                if not isinstance(error, WorkerLostError) or failures > RETRIES or deadline.passed:
                    stop.set()
                    raise
                if wire is not None:
                    wire.close()
                wire = None
                time.sleep(min(RETRY_S * failures, deadline.remaining_s))
    finally:
        if wire is not None:
            wire.close()


def _bucket(
    wire: Wire, request: weights_pb2.WeightRequest, view: memoryview, offset: int, size: int, deadline: Deadline
) -> Iterator[int]:
    """Receives one stretch into its place; yields what came."""
    wanted = weights_pb2.WeightRequest()
    wanted.CopyFrom(request)
    wanted.range.offset, wanted.range.num_bytes = offset, size
    wire.send(wanted, deadline)
    reply = wire.receive(weights_pb2.WeightReply, deadline)
    raise_error(reply.error)
    if reply.num_bytes != size:
        raise RequestError(f"{wire.peer} sends {reply.num_bytes} bytes where {size} were asked for.", field="range")
    received = 0
    for count in wire.receive_parts(view[offset : offset + size], deadline):
        received += count
        yield count
    if received < size:
        raise WorkerLostError(f"{wire.peer} closed the connection.")
