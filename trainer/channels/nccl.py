"""Between GPUs of any machines: each bucket is broadcast to all engines at once, by NCCL; without GPUs by gloo.

    engines                      this channel
    WeightRequest  --------->    gathers those who ask into a round (rounds.py)
                   <---------    WeightBucket: a seat in the round's own process group, or how to open the buffer
    enter, BucketTaken ----->
                   <---------    WeightBucket: which tensors come; then the bucket, by broadcast
    BucketTaken ------------>    fills the buffer again

NCCL crosses the network once for each node and passes on within it. It does not join two processes on one GPU, so an
engine on the publisher's own GPU opens the buffer by CUDA IPC and takes part without a seat. A member that dies or
stands still breaks the round within STEP_S: its group is aborted, the others are told and ask again for what they lack.
The group's own traffic is as open as that of Megatron's groups: neither encrypted nor guarded by the token.
"""

from collections.abc import Sequence
from datetime import timedelta

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from crescendo.common.broadcast import BroadcastGroup, watched
from crescendo.common.errors import RequestError
from crescendo.common.rpc.wire import Deadline, Wire
from crescendo.common.weights import SHM_FOLDER
from crescendo.proto.v1 import weights_pb2
from crescendo.trainer.channels.rounds import Member, Rounds
from crescendo.trainer.channels.serving import WeightServer
from crescendo.trainer.channels.transfer import HeldWeights, Home, Outbox, TransferBuffer

STEP_S = 60.0  # for a group to meet, or a bucket to be with all


class NcclChannel(HeldWeights):
    """Versions of one run. Owned by the trainer's rank that speaks, which is rank 0 of every round."""

    name = "nccl"

    def __init__(self, run_id: str, node: str, token: str, home: Home | None = None) -> None:
        self._rounds = Rounds(self._serve)
        outbox = Outbox(SHM_FOLDER / f"crescendo-{run_id}-bucket", home)
        super().__init__(node, outbox, WeightServer(self._answer, token=token))

    def _answer(self, wire: Wire, request: weights_pb2.WeightRequest, deadline: Deadline) -> None:
        order = request.buckets
        self._rounds.join(Member(wire, request.version, order.device or "cpu", max(0, order.taken)), deadline)

    def _serve(self, version: int, members: list[Member], deadline: Deadline) -> None:
        with self._outbox.turn:
            device = self._outbox.device
            mine = device_name(device)
            near = [each for each in members if each.device == mine != "cpu"]
            far = [each for each in members if each not in near]
            on_gpus = device.type == "cuda" and all(each.device != "cpu" for each in far)
            group: BroadcastGroup | None = None
            broken = True
            try:
                first = min(each.taken for each in members)
                for number, (buffer, bucket) in enumerate(self._outbox.buckets(version, first)):
                    if not number:
                        group = self._meet(buffer, near, far, "nccl" if on_gpus else "gloo")
                    self._pass_on(buffer, bucket, members, group, on_gpus=on_gpus)
                broken = False
            finally:
                if group is not None:
                    group.close(broken=broken)

    def _meet(
        self, buffer: TransferBuffer, near: Sequence[Member], far: Sequence[Member], backend: str
    ) -> BroadcastGroup | None:
        """Members that share the publisher's GPU open the buffer, the others enter a group."""
        deadline = Deadline.after(STEP_S)
        for member in near:
            member.wire.send(weights_pb2.WeightBucket(handle=buffer.handle()), deadline)
        if not far:
            _await_all(near, deadline)
            return None
        if backend == "nccl":
            _check_apart(far)
        host = self._server.address.rpartition(":")[0]
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=STEP_S))
        seat = weights_pb2.GroupHandle(
            store=f"{host}:{store.port}", size=len(far) + 1, backend=backend, timeout_seconds=STEP_S
        )
        for rank, member in enumerate(far, start=1):
            seat.rank = rank
            member.wire.send(weights_pb2.WeightBucket(group=seat), deadline)
        seat.rank = 0
        wires = [each.wire for each in (*near, *far)]
        return watched(
            lambda: BroadcastGroup(torch, seat, own_host=host, store=store), wires, _taken, deadline, answers=True
        )

    @staticmethod
    def _pass_on(
        buffer: TransferBuffer,
        bucket: weights_pb2.WeightBucket,
        members: Sequence[Member],
        group: BroadcastGroup | None,
        *,
        on_gpus: bool,
    ) -> None:
        deadline = Deadline.after(STEP_S)
        for member in members:
            member.wire.send(bucket, deadline)
        if group is None:
            _await_all(members, deadline)
            return
        data = buffer.bytes[: bucket.num_bytes]
        sent = data if on_gpus else data.cpu()
        watched(lambda: group.broadcast(sent), [each.wire for each in members], _taken, deadline, answers=True)


def device_name(device: torch.device) -> str:
    """As members give it in BucketOrder."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"


def _check_apart(members: Sequence[Member]) -> None:
    names = [each.device for each in members]
    if len(set(names)) < len(names):
        raise RequestError(
            "two engine processes on one GPU ask for weights by NCCL, which joins one process a GPU.",
            field="trainer.weight_channel",
            fix="Give each engine its own GPU, or use the channel ipc, or tcp between machines.",
        )


def _await_all(members: Sequence[Member], deadline: Deadline) -> None:
    for member in members:
        _taken(member.wire, deadline)


def _taken(wire: Wire, deadline: Deadline | None = None) -> None:
    taken = wire.receive(weights_pb2.BucketTaken, deadline or Deadline.after(STEP_S))
    if taken.error:
        raise RequestError(f"an engine gave up: {taken.error}", field="manifest")
