"""Weight channels that are files: what is written is what the manifest says, and older versions go when told."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import xxhash

from crescendo.common.errors import RequestError
from crescendo.common.weights import ALIGNMENT, stale_shm_files
from crescendo.trainer.channels import WeightChannel, Written, open_channel
from crescendo.trainer.megatron.weights import Exported

RUN = f"channel-test-{os.getpid()}"


@pytest.fixture(params=["shm", "disk"])
def channel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WeightChannel]:
    made = open_channel(request.param, run_id=RUN, run_folder=tmp_path, threads=2)
    yield made
    made.close()
    assert stale_shm_files(RUN) == []


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> list[Exported]:
    torch.manual_seed(seed)
    grouped = torch.randn(2, 6, 5).to(dtype)[:, :4]  # as split_qkv gives: not contiguous
    plain = [torch.randn(1000, 300).to(dtype), torch.randn(7).to(dtype), torch.randn(3, 3).to(dtype)]
    made = [Exported(f"t{i}", tuple(each.shape), each) for i, each in enumerate(plain)]
    return [*made, Exported("grouped", (8, 5), grouped)]


def write(channel: WeightChannel, version: int, given: list[Exported]) -> Written:
    dtype = str(given[0].data.dtype).removeprefix("torch.")
    return channel.write(version, [(each.name, each.shape) for each in given], dtype, iter(given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_and_digests_are_as_described(channel: WeightChannel, dtype: torch.dtype) -> None:
    given = tensors(0, dtype)
    written = write(channel, 1, given)
    raw = Path(written.shards[0].address).read_bytes()
    assert len(raw) == written.shards[0].num_bytes
    for spec, tensor in zip(written.tensors, given, strict=True):
        assert spec.offset % ALIGNMENT == 0
        part = raw[spec.offset : spec.offset + spec.num_bytes]
        stored = torch.frombuffer(bytearray(part), dtype=dtype).view(*spec.shape)
        assert torch.equal(stored, tensor.data.reshape(tensor.shape))
        assert spec.digest == xxhash.xxh3_64_intdigest(part)


def test_the_version_before_stays_readable_until_it_is_retired(channel: WeightChannel) -> None:
    first = Path(write(channel, 1, tensors(1)).shards[0].address)
    before = first.read_bytes()
    second = Path(write(channel, 2, tensors(2)).shards[0].address)
    assert first.read_bytes() == before
    channel.retire(2)
    assert not first.exists()
    assert second.exists()


def test_slots_are_used_again_without_mixing_versions(channel: WeightChannel) -> None:
    for version in range(1, 6):
        given = tensors(version)
        written = write(channel, version, given)
        raw = Path(written.shards[0].address).read_bytes()
        spec = written.tensors[0]
        assert raw[spec.offset : spec.offset + spec.num_bytes] == given[0].data.numpy().tobytes()
        channel.retire(version)


def test_publishing_a_version_again_replaces_it(channel: WeightChannel) -> None:
    write(channel, 1, tensors(1))
    again = write(channel, 1, tensors(2))
    raw = Path(again.shards[0].address).read_bytes()
    assert again.tensors[0].digest == xxhash.xxh3_64_intdigest(raw[: again.tensors[0].num_bytes])


def test_files_of_a_trainer_that_died_are_removed(tmp_path: Path) -> None:
    write(open_channel("shm", run_id=RUN, run_folder=tmp_path, threads=1), 3, tensors(1))
    assert len(stale_shm_files(RUN)) == 1
    open_channel("shm", run_id=RUN, run_folder=tmp_path, threads=1).close()
    assert stale_shm_files(RUN) == []


def test_an_unknown_channel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="weight_channel"):
        open_channel("pigeon", run_id=RUN, run_folder=tmp_path, threads=1)
