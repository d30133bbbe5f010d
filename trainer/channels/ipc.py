"""Within a machine, from GPU memory to GPU memory: tensors go through one transfer buffer, bucket after bucket.

    engine                       this channel
    WeightRequest  --------->    fills the buffer with tensors, waits for the device
                   <---------    WeightBucket: which tensors lie where (and, first, how to open the buffer)
    copies, then BucketTaken ->  fills it again

One engine after the other. What is sent and where it lies is transfer.py.
"""

from crescendo.common.errors import RequestError
from crescendo.common.rpc.wire import Deadline, Wire
from crescendo.common.weights import SHM_FOLDER
from crescendo.proto.v1 import weights_pb2
from crescendo.trainer.channels.serving import WeightServer
from crescendo.trainer.channels.transfer import HeldWeights, Home, Outbox


class IpcChannel(HeldWeights):
    """Versions of one run on this machine. Owned by the trainer's rank that speaks."""

    name = "ipc"

    def __init__(self, run_id: str, node: str, token: str, home: Home | None = None) -> None:
        outbox = Outbox(SHM_FOLDER / f"crescendo-{run_id}-bucket", home)
        server = WeightServer(self._answer, token=token, path=SHM_FOLDER / f"crescendo-{run_id}-ipc")
        super().__init__(node, outbox, server)

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
