"""Older fences are refused; equal and newer ones are taken."""

import pytest

from crescendo.common.errors import RequestError, StaleFenceError
from crescendo.common.fence import FenceGuard
from crescendo.proto.v1 import common_pb2


def fence(epoch: int, counter: int) -> common_pb2.Fence:
    return common_pb2.Fence(epoch=epoch, counter=counter)


def test_orders_by_epoch_then_counter() -> None:
    guard = FenceGuard()
    for accepted in (fence(1, 0), fence(1, 3), fence(1, 3), fence(2, 0)):
        guard.check(accepted)
    for stale in (fence(1, 9), fence(1, 3)):
        with pytest.raises(StaleFenceError, match="older"):
            guard.check(stale)
    assert guard.highest == fence(2, 0)


def test_no_fence_is_refused() -> None:
    with pytest.raises(RequestError, match="epoch"):
        FenceGuard().check(common_pb2.Fence())
