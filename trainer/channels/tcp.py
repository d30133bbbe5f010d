"""Between machines: a version lies in this process's memory, and engines fetch it over TCP, a bucket a request.

With certificates the bytes are encrypted on their way. A retired version's memory becomes the next one's, as in the shm
channel. An engine that comes late fetches by the registry's manifest as long as its version is not retired. Buckets are
sent from the mapping: the kernel's sendfile is half as fast from memory that lies in small pages (measured).
"""

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from crescendo.common.errors import RequestError
from crescendo.common.rpc.wire import Deadline, Wire
from crescendo.proto.v1 import common_pb2, weights_pb2
from crescendo.trainer.channels.base import Layout, NamedTensor, Written
from crescendo.trainer.channels.mapped import MappedFile, fill, plan
from crescendo.trainer.channels.serving import WeightServer


class TcpChannel:
    """Versions of one run in memory, served. Owned by the trainer's rank that speaks."""

    name = "tcp"

    def __init__(self, node: str, threads: int, token: str) -> None:
        self._node = node
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="publish")
        self._files: dict[int, MappedFile] = {}
        self._spare: MappedFile | None = None
        self._lock = threading.Lock()
        self._server = WeightServer(self._answer, token=token)

    def write(self, version: int, layout: Layout, dtype: str, tensors: Iterable[NamedTensor]) -> Written:
        """Copies and hashes; raises EnvironmentProblem when there is no memory for it."""
        began = time.perf_counter()
        specs, size = plan(layout, dtype)
        file = self._take(version, size)
        digest_seconds = fill(file, specs, tensors, self._pool)
        with self._lock:
            self._files[version] = file
        shard = common_pb2.WeightShard(address=self._server.address, num_bytes=size, node=self._node)
        return Written([shard], specs, time.perf_counter() - began, digest_seconds)

    def _take(self, version: int, size: int) -> MappedFile:
        with self._lock:
            again = self._files.pop(version, None)  # a repeated publish: nobody may read it half written
            if again is not None and again.size == size:
                return again
            spare, self._spare = self._spare, None
        if spare is not None and spare.size == size:
            return spare
        return MappedFile.anonymous(size)

    def retire(self, below_version: int) -> None:
        """Older versions are served no more; the newest of them is kept as the spare."""
        with self._lock:
            for version in sorted(v for v in self._files if v < below_version):
                self._spare = self._files.pop(version)

    def close(self) -> None:
        """Ends the server and frees everything."""
        self._server.close()
        with self._lock:
            self._files, self._spare = {}, None
        self._pool.shutdown()

    def _answer(self, wire: Wire, request: weights_pb2.WeightRequest, deadline: Deadline) -> None:
        with self._lock:
            file = self._files.get(request.version)
            kept = sorted(self._files)
        if file is None:
            raise RequestError(
                f"weight version {request.version} is not served; there are {kept or 'none'}.",
                field="version",
                fix="Take the newest manifest from the registry.",
            )
        offset, size = request.range.offset, request.range.num_bytes
        if offset < 0 or size <= 0 or offset + size > file.size:
            raise RequestError(
                f"bytes {offset} to {offset + size} of version {request.version} do not exist; it has {file.size}.",
                field="range",
            )
        wire.send(weights_pb2.WeightReply(num_bytes=size), deadline)
        wire.send_bytes(memoryview(file.mapping)[offset : offset + size], deadline)
