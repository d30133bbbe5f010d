"""Fencing tokens on the receiving side: whoever comes with an older one than was seen is refused."""

from crescendo.common.errors import RequestError, StaleFenceError
from crescendo.proto.v1 import common_pb2


class FenceGuard:
    """Remembers the highest fence; orders by (epoch, counter)."""

    def __init__(self) -> None:
        self.highest = common_pb2.Fence()

    def check(self, fence: common_pb2.Fence) -> None:
        """Raises StaleFenceError for an older fence, RequestError for none."""
        if fence.epoch <= 0:
            raise RequestError(
                f"fence.epoch is {fence.epoch}; a request that changes state carries a fence with a positive epoch.",
                field="fence",
                fix="Use the fence that the buffer issued.",
            )
        if (fence.epoch, fence.counter) < (self.highest.epoch, self.highest.counter):
            raise StaleFenceError(
                f"fence ({fence.epoch}, {fence.counter}) is older than ({self.highest.epoch}, "
                f"{self.highest.counter}), which was seen already.",
                field="fence",
                fix="Another controller took over, or a lease moved on; stop using the old fence.",
            )
        self.highest.CopyFrom(fence)
