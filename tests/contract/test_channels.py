"""One suite over every weight channel: what engines take is what the trainer wrote, or it is refused."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from crescendo.buffer import MemoryBuffer
from crescendo.common.errors import CrescendoError, RequestError, StaleFenceError, WorkerLostError
from crescendo.common.rpc.wire import Deadline, Wire
from crescendo.common.weights import SHM_FOLDER, manifest_digest, stale_shm_files, word_digest
from crescendo.proto.v1 import common_pb2, weights_pb2
from crescendo.rollout import fetch
from crescendo.rollout.engine.shards import STREAMED_CHANNELS
from crescendo.rollout.fetch import NodeCopy
from crescendo.trainer.channels import NAMES, WeightChannel, open_channel, rounds, transfer
from crescendo.trainer.channels.transfer import TransferBuffer
from crescendo.trainer.megatron.weights import Exported
from tests.contract.channel_cases import FENCE, RUN, TOKEN, publish, take, tensors

SERVED = ("tcp",)


@pytest.fixture(autouse=True)
def _short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "WINDOW_S", 0.1)


@contextlib.contextmanager
def opened(name: str, folder: Path) -> Iterator[WeightChannel]:
    made = open_channel(name, run_id=RUN, run_folder=folder, threads=2, token=TOKEN)
    yield made
    made.close()
    assert stale_shm_files(RUN) == []


@pytest.fixture(params=NAMES)
def channel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WeightChannel]:
    with opened(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WeightChannel]:
    """Those that engines ask for bytes."""
    with opened(request.param, tmp_path) as made:
        yield made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ends_have_the_same_bytes_and_digests(channel: WeightChannel, dtype: torch.dtype) -> None:
    given = tensors(1, dtype)
    manifest = publish(channel, 1, given)
    taken = take(manifest)
    assert taken.equals(given)
    assert taken.digests == [spec.digest for spec in manifest.tensors]
    assert manifest_digest(manifest.tensors, taken.digests) == manifest.digest
    assert manifest.channel == channel.name


def test_a_corrupted_byte_shows(channel: WeightChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = publish(channel, 1, tensors(1))
    if channel.name in SERVED:
        receive = Wire.receive_parts

        def damaged(self: Wire, target: memoryview, deadline: Deadline) -> Iterator[int]:
            yield from receive(self, target, deadline)
            if len(target) > 1000:
                target[77] ^= 1

        monkeypatch.setattr(Wire, "receive_parts", damaged)
    elif channel.name in STREAMED_CHANNELS:
        fill = TransferBuffer.fill

        def spoilt(self: TransferBuffer, given: list[torch.Tensor]) -> list[int]:
            offsets = fill(self, given)
            self.bytes[77] ^= 1
            return offsets

        monkeypatch.setattr(TransferBuffer, "fill", spoilt)
    else:
        with Path(manifest.shards[0].address).open("r+b") as file:
            file.seek(77)
            byte = file.read(1)[0]
            file.seek(77)
            file.write(bytes([byte ^ 1]))
    taken = take(manifest)
    wrong = [n for n, spec in enumerate(manifest.tensors) if spec.digest != taken.digests[n]]
    assert wrong == [0]


async def test_a_late_joiner_takes_the_version_that_the_registry_names(channel: WeightChannel) -> None:
    buffer = MemoryBuffer()
    fence = await buffer.acquire_epoch()
    given = tensors(2)
    version = await buffer.next_version(fence, parent=0, branch=0, iteration=1)
    await buffer.register_weights(fence, publish(channel, version, given))
    record = await buffer.weights(version)
    assert record is not None
    assert record.manifest is not None
    assert take(record.manifest).equals(given)
    channel.retire(version)
    assert take(record.manifest).equals(given), "the newest version stays when older ones are retired"


def test_a_retired_version_is_refused_and_not_replaced_by_another(channel: WeightChannel) -> None:
    old = publish(channel, 1, tensors(1))
    publish(channel, 2, tensors(2))
    channel.retire(2)
    with pytest.raises(RequestError, match=r"not served|cannot be opened"):
        take(old)


def test_versions_follow_one_another_on_one_node(channel: WeightChannel) -> None:
    copy = NodeCopy(RUN, TOKEN)
    for version in range(1, 5):
        given = tensors(version)
        taken = take(publish(channel, version, given), copy=copy)
        assert taken.equals(given)
        channel.retire(version)
        assert len(list(SHM_FOLDER.glob(f"crescendo-{RUN}-node-w*"))) <= 1, "one copy on a node"
    copy.close()


def test_the_engines_of_a_node_fetch_once(served: WeightChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    connect = fetch.connect

    def counted(address: str, deadline: Deadline) -> Wire:
        asked.append(address)
        return connect(address, deadline)

    monkeypatch.setattr(fetch, "connect", counted)
    monkeypatch.setattr(fetch, "CONNECTIONS", 1)
    manifest, given = publish(served, 1, tensors(3)), tensors(3)
    copies = [NodeCopy(RUN, TOKEN) for _ in range(3)]
    threads = [threading.Thread(target=one.localize, args=(manifest, FENCE, 10.0)) for one in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert take(manifest, copy=copies[0]).equals(given)
    assert len(asked) == 1
    copies[0].close()


def test_a_dead_server_is_a_typed_error_within_the_deadline(served: WeightChannel) -> None:
    manifest = publish(served, 1, tensors(1))
    served.close()
    began = time.monotonic()
    with pytest.raises(WorkerLostError):
        take(manifest, deadline_s=2.0)
    assert time.monotonic() - began < 6.0


def test_a_silent_server_is_a_typed_error_within_the_deadline(served: WeightChannel) -> None:
    manifest = publish(served, 1, tensors(1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        manifest.shards[0].address = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(CrescendoError) as caught:
            take(manifest, deadline_s=0.5)
    assert caught.value.retryable
    assert time.monotonic() - began < 3.0


def test_a_broken_connection_goes_on_where_it_broke(served: WeightChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BUCKET_BYTES", 1 << 18)
    monkeypatch.setattr(fetch, "RETRY_S", 0.001)
    receive = Wire.receive_parts
    received: list[int] = []

    def breaking(self: Wire, target: memoryview, deadline: Deadline) -> Iterator[int]:
        """Every connection breaks in the middle of its third large stretch."""
        large = len(target) > 1000
        seen = getattr(self, "seen", 0) + large
        self.seen = seen  # type: ignore[attr-defined]
        for count in receive(self, target[: len(target) // 2] if large and seen == 3 else target, deadline):
            received.append(count if large else 0)
            yield count
        if large and seen == 3:
            raise WorkerLostError("cut")

    monkeypatch.setattr(Wire, "receive_parts", breaking)
    given = tensors(4)
    manifest = publish(served, 1, given)
    assert take(manifest).equals(given)
    assert sum(received) == manifest.shards[0].num_bytes, "no byte comes twice"


def test_a_failed_fetch_is_gone_on_with(served: WeightChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BUCKET_BYTES", 1 << 18)
    monkeypatch.setattr(fetch, "CONNECTIONS", 1)
    bucket = fetch._bucket
    offsets: list[int] = []
    broken = [True]

    def failing(
        wire: Wire,
        request: weights_pb2.WeightRequest,
        view: memoryview,
        offset: int,
        size: int,
        deadline: Deadline,
    ) -> Iterator[int]:
        if broken[0] and len(offsets) == 2:
            raise RequestError("no")
        offsets.append(offset)
        yield from bucket(wire, request, view, offset, size, deadline)

    monkeypatch.setattr(fetch, "_bucket", failing)
    manifest, copy = publish(served, 1, tensors(4)), NodeCopy(RUN, TOKEN)
    with pytest.raises(RequestError):
        take(manifest, copy=copy)
    broken[0] = False
    assert take(manifest, copy=copy).equals(tensors(4))
    assert len(offsets) == len(set(offsets)), "what had come is not fetched again"
    copy.close()


def test_memory_is_bounded(served: WeightChannel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the version, one request asks for at most a bucket."""
    monkeypatch.setattr(fetch, "BUCKET_BYTES", 100_000)
    sizes: list[int] = []
    send = Wire.send

    def watched(self: Wire, message: object, deadline: Deadline) -> None:
        if isinstance(message, weights_pb2.WeightRequest):
            sizes.append(message.range.num_bytes)
        send(self, message, deadline)  # type: ignore[arg-type]

    monkeypatch.setattr(Wire, "send", watched)
    manifest = publish(served, 1, tensors(1))
    take(manifest)
    assert max(sizes) == 100_000
    assert sum(sizes) == manifest.shards[0].num_bytes


def test_an_older_fence_is_refused(served: WeightChannel) -> None:
    manifest = publish(served, 1, tensors(1))
    take(manifest)
    with pytest.raises(StaleFenceError):
        take(manifest, fence=common_pb2.Fence(epoch=FENCE.epoch, counter=FENCE.counter - 1))
    with pytest.raises(RequestError, match="epoch"):
        take(manifest, fence=common_pb2.Fence())


def test_a_wrong_token_is_refused(served: WeightChannel) -> None:
    with pytest.raises(RequestError, match="token"):
        take(publish(served, 1, tensors(1)), token="guessed")


def test_bytes_outside_the_version_are_refused(served: WeightChannel) -> None:
    manifest = publish(served, 1, tensors(1))
    manifest.shards[0].num_bytes *= 2
    with pytest.raises(RequestError, match="do not exist"):
        take(manifest)


@pytest.mark.parametrize("name", STREAMED_CHANNELS)
def test_one_bucket_is_held_however_large_the_version(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BUCKET_BYTES", 4096)
    given = [Exported(f"t{n}", (256,), torch.full((256,), float(n))) for n in range(100)]
    with opened(name, tmp_path) as channel:
        manifest = publish(channel, 1, given)
        taken = take(manifest)
        assert taken.equals(given)
        assert taken.digests == [spec.digest for spec in manifest.tensors]
        files = [path for path in stale_shm_files(RUN) if path.is_file()]
        assert [path.stat().st_size for path in files if "bucket" in path.name] == [4096]


@pytest.mark.parametrize("name", STREAMED_CHANNELS)
def test_it_is_refused_when_the_weights_are_nowhere(name: str, tmp_path: Path) -> None:
    given = tensors(1)
    with opened(name, tmp_path) as channel:
        manifest = publish(channel, 1, given)
        given[0].data.untyped_storage().resize_(0)
        with pytest.raises(RequestError, match="let go"):
            take(manifest)


@pytest.mark.parametrize("place", [0, 1000, 8191])
def test_a_word_digest_sees_every_word_and_its_place(place: int) -> None:
    words = torch.arange(8192) * 7
    changed = words.clone()
    changed[place] ^= 1 << 40
    swapped = words.clone()
    swapped[[place, 5]] = swapped[[5, place]]
    positions = torch.arange(1, 8193)
    assert len({word_digest(each, positions) for each in (words, changed, swapped)}) == 3
    assert word_digest(words.numpy(), positions.numpy()) == word_digest(words, positions)
