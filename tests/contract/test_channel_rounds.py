"""The channel nccl with several engines: one round serves all, and whoever is lost in it costs the others little.

On cores the group is gloo's; everything else is what GPUs run. The channels that read weights where they are also serve
who comes when the trainer has let go of its device.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from crescendo.common import broadcast
from crescendo.common.errors import RequestError
from crescendo.common.rpc.wire import Deadline
from crescendo.common.weights import stale_shm_files
from crescendo.proto.v1 import common_pb2, weights_pb2
from crescendo.rollout.engine import buckets
from crescendo.rollout.engine.arriving import Arriving
from crescendo.rollout.engine.shards import STREAMED_CHANNELS
from crescendo.rollout.fetch import NodeCopy
from crescendo.trainer.channels import WeightChannel, nccl, open_channel, rounds, transfer
from crescendo.trainer.channels.nccl import NcclChannel
from crescendo.trainer.channels.rounds import Member, Rounds
from crescendo.trainer.device import Device
from crescendo.trainer.megatron.weights import Exported
from tests.contract.channel_cases import FENCE, RUN, TOKEN, Taken, publish, take

ROOT = Path(__file__).parents[2]
CORES = torch.device("cpu")


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Small buckets, short waits; gives the sizes of the groups that were made."""
    made: list[int] = []
    enter = nccl.BroadcastGroup

    def counted(torch_: object, handle: weights_pb2.GroupHandle, **more: object) -> broadcast.BroadcastGroup:
        made.append(handle.size)
        return enter(torch_, handle, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(nccl, "BroadcastGroup", counted)
    monkeypatch.setattr(rounds, "WINDOW_S", 0.3)
    monkeypatch.setattr(transfer, "BUCKET_BYTES", 4096)
    yield made
    assert stale_shm_files(RUN) == []


@pytest.fixture
def channel(sizes: list[int], tmp_path: Path) -> Iterator[WeightChannel]:
    made = open_channel("nccl", run_id=RUN, run_folder=tmp_path, threads=1, token=TOKEN)
    yield made
    made.close()


def version(seed: int) -> list[Exported]:
    """Twenty buckets."""
    torch.manual_seed(seed)
    return [Exported(f"t{n}", (1000,), torch.randn(1000)) for n in range(20)]


def begin(manifest: common_pb2.WeightManifest) -> Iterator[tuple[str, torch.Tensor]]:
    return Arriving(NodeCopy(RUN, TOKEN).localize(manifest, FENCE, 20.0), CORES).tensors()


def engines(manifest: common_pb2.WeightManifest, count: int, pool: ThreadPoolExecutor) -> "list[Future[Taken]]":
    return [pool.submit(take, manifest, run=f"{RUN}-{n}") for n in range(count)]


def test_all_who_ask_together_are_served_in_one_round(channel: WeightChannel, sizes: list[int]) -> None:
    with ThreadPoolExecutor(3) as pool:
        for number in (1, 2):
            given = version(number)
            manifest = publish(channel, number, given)
            for job in engines(manifest, 3, pool):
                taken = job.result(20)
                assert taken.equals(given)
                assert taken.digests == [spec.digest for spec in manifest.tensors]
            assert sizes == [4] * number


def test_as_many_as_the_last_time_are_not_waited_for(
    channel: WeightChannel, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    take(publish(channel, 1, version(1)))
    monkeypatch.setattr(rounds, "WINDOW_S", 30.0)
    began = time.monotonic()
    take(publish(channel, 2, version(2)))
    assert time.monotonic() - began < 10


def test_who_comes_late_has_a_round_of_the_same_version(channel: WeightChannel, sizes: list[int]) -> None:
    given = version(1)
    manifest = publish(channel, 1, given)
    assert take(manifest).equals(given)
    assert take(manifest).equals(given)
    assert sizes == [2, 2]


@pytest.mark.parametrize("death", [True, False], ids=["dies", "freezes"])
def test_an_engine_that_is_lost_breaks_one_round_and_the_others_go_on(
    death: bool, channel: NcclChannel, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One takes the first bucket of twenty; the others then get the rest without it, no tensor twice."""
    given = version(1)
    manifest = publish(channel, 1, given)
    monkeypatch.setattr(nccl, "STEP_S", 120.0 if death else 2.0)
    monkeypatch.setattr(rounds, "WINDOW_S", 120.0)  # until all three are there, and then the two that are left
    channel._rounds._expected = 3
    came = [0, 0]

    def engine(number: int) -> Taken:
        local = NodeCopy(f"{RUN}-{number}", TOKEN).localize(manifest, FENCE, 20.0)
        arriving, found = Arriving(local, CORES), {}
        for name, tensor in arriving.tensors():
            came[number] += 1
            found[name] = tensor
        return Taken(found, arriving.digests or [])

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(engine, number) for number in range(2)]
        stream = begin(manifest)
        if death:
            with in_the_middle(manifest, tmp_path / "manifest", 60.0):
                pass  # it is killed
        else:
            next(stream)
        began = time.monotonic()
        taken = [job.result(60) for job in jobs]
    monkeypatch.setattr(rounds, "WINDOW_S", 0.3)
    assert all(each.equals(given) and each.digests == [spec.digest for spec in manifest.tensors] for each in taken)
    assert came == [20, 20]
    assert sizes[:2] == [4, 3]
    assert time.monotonic() - began < 60
    assert take(publish(channel, 2, given)).equals(given), "the publisher is well"
    stream.close()  # type: ignore[attr-defined]


@contextmanager
def in_the_middle(manifest: common_pb2.WeightManifest, path: Path, stay_s: float) -> Iterator[subprocess.Popen[str]]:
    """A process that has taken the first tensor, stays for a while without taking another, and ends."""
    path.write_bytes(manifest.SerializeToString())
    command = [sys.executable, "-m", "tests.contract.channel_cases", str(path), f"{RUN}-lost", str(stay_s)]
    environment = {**os.environ, "GOMP_SPINCOUNT": "0"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline().strip() == "t0"
            yield child
        finally:
            child.kill()


def test_an_engine_that_ends_in_the_middle_of_a_round_waits_for_nobody(channel: WeightChannel, tmp_path: Path) -> None:
    given = version(1)
    manifest = publish(channel, 1, given)
    with in_the_middle(manifest, tmp_path / "manifest", 0.0) as child:
        assert child.wait(20) == 0
    assert take(manifest).equals(given)


def test_engines_that_all_leave_cost_the_publisher_nothing(channel: WeightChannel) -> None:
    given = version(1)
    manifest = publish(channel, 1, given)
    for _ in range(2):
        stream = begin(manifest)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert take(manifest).equals(given)


def test_an_engine_on_the_publishers_gpu_opens_the_buffer_and_takes_no_seat(
    channel: WeightChannel, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    monkeypatch.setattr(nccl, "device_name", lambda _: "GPU-1")
    names = iter(["GPU-1", "cpu"])
    monkeypatch.setattr(buckets, "device_name", lambda _: next(names))
    given = version(1)
    manifest = publish(channel, 1, given)
    with ThreadPoolExecutor(2) as pool:
        assert all(job.result(20).equals(given) for job in engines(manifest, 2, pool))
    assert sizes == [2], "the publisher and the other engine"


def test_two_engines_on_another_gpu_are_refused(channel: NcclChannel) -> None:
    with pytest.raises(RequestError, match="one process a GPU"):
        nccl._check_apart([Member(None, 1, "GPU-2"), Member(None, 1, "GPU-2")])  # type: ignore[arg-type]


def test_a_refusal_reaches_every_member_as_it_is() -> None:
    def refuse(number: int, members: list[Member], deadline: Deadline) -> None:
        raise RequestError(f"version {number} is gone")

    member = Member(None, 4)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="version 4 is gone"):
        Rounds(refuse).join(member, Deadline.after(5))


@pytest.mark.parametrize("name", STREAMED_CHANNELS)
def test_who_comes_when_the_trainer_has_let_go_is_served_from_the_host(
    name: str, tmp_path: Path, sizes: list[int]
) -> None:
    flat = torch.randn(6000)
    weights = [flat[:2000].view(50, 40), flat[2000:].view(10, 400)]
    given = [Exported("a", (50, 40), weights[0]), Exported("b", (5, 400), weights[1][::2])]
    gathered = Exported("c", (3,), torch.ones(3))
    device = Device(CORES)
    device.manage(weights)
    made = open_channel(name, run_id=RUN, run_folder=tmp_path, threads=1, token=TOKEN, home=device)
    try:
        manifest = publish(made, 1, [*given, gathered])
        wanted = [Exported(each.name, each.shape, each.data.clone()) for each in (*given, gathered)]
        gathered.data.zero_()  # it was no weight, and was kept
        device.release("offload", [flat])
        assert flat.untyped_storage().nbytes() == 0
        assert take(manifest).equals(wanted)
        device.acquire()
        assert take(manifest).equals(wanted)
    finally:
        made.close()
