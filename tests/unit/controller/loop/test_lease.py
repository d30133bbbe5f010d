"""The lease as the controller drives it: proofs from reports, stronger methods, lost workers, fences."""

from pathlib import Path
from typing import Any

import pytest

from crescendo.buffer import MemoryBuffer
from crescendo.common.errors import WorkerLostError
from crescendo.common.leases import LeaseState, Share
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import ServiceSpec
from crescendo.common.telemetry import read_jsonl
from crescendo.controller.launch import Worker
from crescendo.controller.loop import lease as driven
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.lease import DeviceLease
from crescendo.proto.v1 import common_pb2, rollout_pb2, trainer_pb2

GIB = 2**30
TOTAL = 80 * GIB


class Holder(Worker):
    """A worker that answers itself. leftover: GiB that stay taken by each way to let go; busy: computes on."""

    def __init__(self, role: str, leftover: dict[str, int], *, busy: bool = False, needs: int = 60) -> None:
        super().__init__(ServiceSpec(role, f"{role}-0", "", "run", "token"), 0)
        self.state = "ready"
        self.leftover = leftover
        self.busy = busy
        self.needs = needs * GIB
        self.calls: list[str] = []
        self.device = common_pb2.DeviceReport()

    async def call(self, method: str, request: Any, *, timeout_s: float, attempts: int = 1) -> Any:
        if method == "ReleaseDevice":
            self.calls.append(request.method)
            self.device.method = request.method
            self.device.needed_bytes = self.needs
        elif method == "AcquireDevice":
            self.calls.append(getattr(request, "share", "") or "acquire")
        kind = trainer_pb2.TrainerReleaseDeviceResponse if self.role == "trainer" else None
        return (kind or rollout_pb2.RolloutReleaseDeviceResponse)(device=self.device)

    async def refresh(self, timeout_s: float) -> common_pb2.WorkerStatus:
        self.device.cpu_seconds += 10.0 if self.busy else 0.0
        if self.leftover:
            self.device.total_bytes = TOTAL
            self.device.free_bytes = TOTAL - self.leftover[self.device.method] * GIB
        self.status = common_pb2.WorkerStatus(device=self.device)
        return self.status


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", "test")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driven, "PROOF_DEADLINE_S", 0.05)
    monkeypatch.setattr(driven, "PROOF_INTERVAL_S", 0.005)


async def taken(folder: RunFolder, *, on_gpu: bool) -> DeviceLease:
    made = DeviceLease(MemoryBuffer(), Board(folder, "test"), on_gpu=on_gpu)
    await made.take_over()
    return made


def unproven(folder: RunFolder) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(folder.events) if row.get("kind") == "lease.unproven"]


async def test_an_engine_whose_sleep_leaves_too_much_is_restarted_and_then_at_once(folder: RunFolder) -> None:
    lease = await taken(folder, on_gpu=True)
    trainer = Holder("trainer", {"offload": 5}, needs=60)
    engine = Holder("rollout", {"sleep": 30, "restart": 2}, needs=70)
    await lease.release_trainer(trainer)
    await lease.release_engines([engine])
    assert engine.calls == ["sleep", "restart"]
    [event] = unproven(folder)
    assert "restart is tried" in event["message"]
    assert "50.00 GiB are free, and 60.00 are needed" in event["message"]
    assert lease.starts_whole(engine)
    await lease.release_engines([engine])
    assert engine.calls == ["sleep", "restart", "restart"], "sleep is known to leave too much"


async def test_a_trainer_that_keeps_memory_is_lost_before_engines_run_out(folder: RunFolder) -> None:
    lease = await taken(folder, on_gpu=True)
    engine = Holder("rollout", {"sleep": 1, "restart": 1}, needs=70)
    trainer = Holder("trainer", {"offload": 20})
    await lease.release_engines([engine])
    with pytest.raises(WorkerLostError, match="does not let go"):
        await lease.release_trainer(trainer)
    assert trainer.state == "lost"
    assert len(unproven(folder)) == 1


async def test_on_cores_a_trainer_that_computes_on_is_an_event_only(folder: RunFolder) -> None:
    lease = await taken(folder, on_gpu=False)
    trainer = Holder("trainer", {}, busy=True)
    await lease.release_trainer(trainer)
    assert trainer.calls == ["idle"]
    [event] = unproven(folder)
    assert "still computes" in event["message"]
    engine = Holder("rollout", {}, busy=True)
    await lease.release_engines([engine])
    assert engine.calls == ["idle", "restart"]


async def test_a_quiet_holder_is_proven_at_once(folder: RunFolder) -> None:
    lease = await taken(folder, on_gpu=False)
    await lease.release_engines([Holder("rollout", {})])
    assert unproven(folder) == []


async def test_each_hand_over_voids_older_fences(folder: RunFolder) -> None:
    lease = await taken(folder, on_gpu=True)
    fences = [(lease.fence.epoch, lease.fence.counter)]
    trainer, engine = Holder("trainer", {"offload": 5, "offload_state": 30}), Holder("rollout", {"sleep": 1})
    await lease.move(LeaseState.OFFLOADING)
    await lease.shed_trainer(trainer)
    await lease.move(LeaseState.PUBLISHING)
    await lease.acquire_engines([engine], Share.WEIGHTS)
    await lease.release_trainer(trainer)
    fences.append((lease.fence.epoch, lease.fence.counter))
    await lease.move(LeaseState.ROLLOUT)
    await lease.acquire_engines([engine])
    fences.append((lease.fence.epoch, lease.fence.counter))
    assert fences == sorted(set(fences))
    assert trainer.calls == ["offload_state", "offload"]
    assert engine.calls == ["weights", "all"]
    assert set(lease.seconds) == {"train", "offloading", "publishing"}
