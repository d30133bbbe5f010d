"""Fences: who may write, on Redis."""

from crescendo.buffer.lease_clock import LeaseClock
from crescendo.buffer.part import Part
from crescendo.proto.v1 import common_pb2


class Fencing(Part):
    """Issues fences; every script checks them."""

    _lease_clock: LeaseClock

    async def acquire_epoch(self, held: common_pb2.Fence | None = None) -> common_pb2.Fence:
        epoch, clock_ms = await self._client.run("acquire_epoch", held, self._nonce(), durable=True)
        self._lease_clock.set(clock_ms)
        return common_pb2.Fence(epoch=epoch, counter=0)

    async def advance_fence(self, fence: common_pb2.Fence) -> common_pb2.Fence:
        epoch, counter = await self._client.run("advance_fence", fence, self._nonce())
        return common_pb2.Fence(epoch=epoch, counter=counter)
