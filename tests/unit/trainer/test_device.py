"""Letting go of the device: what moves to the host comes back bit for bit, and the accounts say so."""

import pytest
import torch

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2
from crescendo.trainer.device import Device

ROWS = 1000


class Held:
    """Weights, gradients and moments in flat buffers with views, as the optimizer has them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.working, self.grad, self.first = (torch.randn(ROWS) for _ in range(3))
        self.parameter = torch.nn.Parameter(self.working[10:20].view(2, 5))
        self.parameter.grad = self.grad[10:20].view(2, 5)

    @property
    def buffers(self) -> list[torch.Tensor]:
        return [self.working, self.grad, self.first]

    def sizes(self) -> list[int]:
        return [each.untyped_storage().nbytes() for each in self.buffers]


@pytest.fixture
def device() -> Device:
    return Device(torch.device("cpu"))


def test_all_goes_and_comes_back_bit_for_bit_in_the_same_views(device: Device) -> None:
    held = Held()
    before = [each.clone() for each in held.buffers]
    seen, gradient = held.parameter.detach().clone(), held.grad[10:20].clone()
    report = device.release("offload", held.buffers)
    assert held.sizes() == [0, 0, 0]
    assert device.away_bytes == 3 * ROWS * 4
    assert (report.state, report.method) == (common_pb2.DEVICE_STATE_RELEASED, "offload")
    with pytest.raises(RequestError, match="let go"):
        device.require()
    assert device.acquire().state == common_pb2.DEVICE_STATE_RESIDENT
    assert device.away_bytes == 0
    assert all(torch.equal(one, other) for one, other in zip(held.buffers, before, strict=True))
    assert torch.equal(held.parameter, seen)
    assert held.parameter.grad is not None
    assert torch.equal(held.parameter.grad.reshape(-1), gradient)
    held.working.add_(1)
    assert torch.equal(held.parameter, seen + 1), "parameters are views of the same buffer as before"


def test_the_state_goes_first_and_weights_stay_for_publishing(device: Device) -> None:
    held = Held()
    before = [each.clone() for each in held.buffers]
    report = device.release("offload_state", held.buffers, [held.parameter])
    assert held.sizes() == [ROWS * 4, 0, 0]
    assert report.state == common_pb2.DEVICE_STATE_RESIDENT
    device.require(weights_only=True)
    with pytest.raises(RequestError, match="offload_state"):
        device.require()
    device.release("offload", held.buffers, [held.parameter])
    assert held.sizes() == [0, 0, 0]
    device.release("offload", held.buffers)
    assert device.release("offload_state", held.buffers, [held.parameter]).method == "offload", "never backwards"
    device.acquire()
    assert all(torch.equal(one, other) for one, other in zip(held.buffers, before, strict=True))


def test_idle_moves_nothing(device: Device) -> None:
    held = Held()
    device.release("", held.buffers)
    assert held.sizes() == [ROWS * 4] * 3
    with pytest.raises(RequestError):
        device.require()
    device.acquire()
    device.require()
