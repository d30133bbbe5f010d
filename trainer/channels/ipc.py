"""Within a machine, from GPU memory to GPU memory: tensors go through one transfer buffer, bucket after bucket.

    engine                       this channel
    WeightRequest  --------->    fills the buffer with tensors, waits for the device
                   <---------    WeightBucket: which tensors lie where (and, first, how to open the buffer)
    copies, then BucketTaken ->  fills it again

One engine after the other. What is sent and where it lies is transfer.py.
"""

import time
from collections.abc import Iterable

from crescendo.common.errors import RequestError
from crescendo.common.rpc.wire import Deadline, Wire
from crescendo.common.weights import SHM_FOLDER
from crescendo.proto.v1 import common_pb2, weights_pb2
from crescendo.trainer.channels.base import Layout, NamedTensor, Written
from crescendo.trainer.channels.serving import WeightServer
from crescendo.trainer.channels.transfer import Home, Outbox


class IpcChannel:
    """Versions of one run on this machine. Owned by the trainer's rank that speaks."""

    name = "ipc"

    def __init__(self, run_id: str, node: str, token: str, home: Home | None = None) -> None:
        self._node = node
        self._outbox = Outbox(SHM_FOLDER / f"crescendo-{run_id}-bucket", home)
        self._server = WeightServer(self._answer, token=token, path=SHM_FOLDER / f"crescendo-{run_id}-ipc")

    def write(self, version: int, layout: Layout, dtype: str, tensors: Iterable[NamedTensor]) -> Written:
        """Digests; the bytes stay where they are."""
        began = time.perf_counter()
        specs, size = self._outbox.hold(version, layout, dtype, tensors)
        shard = common_pb2.WeightShard(address=self._server.address, num_bytes=size, node=self._node)
        seconds = time.perf_counter() - began
        return Written([shard], specs, seconds, seconds)

    def retire(self, below_version: int) -> None:
        """Older versions are served no more."""
        self._outbox.retire(below_version)

    def close(self) -> None:
        """Ends the server and frees the buffer."""
        self._server.close()
        self._outbox.close()

    def _answer(self, wire: Wire, request: weights_pb2.WeightRequest, deadline: Deadline) -> None:
        with self._outbox.turn:
            handle = b""
            for buffer, bucket in self._outbox.buckets(request.version):
                if not handle:
                    bucket.handle = handle = buffer.handle()
                wire.send(bucket, deadline)
                taken = wire.receive(weights_pb2.BucketTaken, deadline)
                if taken.error:
                    raise RequestError(f"the engine gave up: {taken.error}", field="manifest")
