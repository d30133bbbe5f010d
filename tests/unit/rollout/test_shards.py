"""Manifests that cannot be loaded are refused before anything is touched."""

from collections.abc import Callable
from pathlib import Path

import pytest

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine.shards import check_manifest, map_shards, tensor_bytes


def manifest(path: Path) -> common_pb2.WeightManifest:
    path.write_bytes(bytes(range(192)))
    return common_pb2.WeightManifest(
        version=1,
        channel="disk",
        shards=[common_pb2.WeightShard(address=str(path), num_bytes=192)],
        tensors=[common_pb2.TensorSpec(name="a", dtype="float32", shape=[2, 4], offset=64, num_bytes=32)],
    )


def test_tensor_bytes_are_those_at_its_offset(tmp_path: Path) -> None:
    made = manifest(tmp_path / "shard")
    check_manifest(made)
    assert bytes(tensor_bytes(map_shards(made), made.tensors[0])) == bytes(range(64, 96))


def test_holders_share_a_mapping_and_a_new_file_gets_a_new_one(tmp_path: Path) -> None:
    made = manifest(tmp_path / "shard")
    first = map_shards(made)
    assert map_shards(made)[0] is first[0]
    (tmp_path / "new").write_bytes(bytes(192))
    (tmp_path / "new").rename(tmp_path / "shard")
    assert map_shards(made)[0] is not first[0]


def _set(name: str, value: object) -> Callable[[common_pb2.WeightManifest], None]:
    return lambda made: setattr(made.tensors[0], name, value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda made: setattr(made, "channel", "post"),
        lambda made: setattr(made, "version", 0),
        _set("dtype", "complex64"),
        _set("shard", 1),
        _set("num_bytes", 64),
        _set("offset", 176),
        lambda made: made.tensors[0].shape.append(2),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, damage: Callable[[common_pb2.WeightManifest], None]
) -> None:
    made = manifest(tmp_path / "shard")
    damage(made)
    with pytest.raises(RequestError, match=r"manifest|tensor"):
        check_manifest(made)


def test_a_shard_that_is_missing_or_short_is_refused(tmp_path: Path) -> None:
    made = manifest(tmp_path / "shard")
    made.shards[0].num_bytes = 4096
    with pytest.raises(RequestError, match="has 192 bytes"):
        map_shards(made)
    made.shards[0].address = str(tmp_path / "gone")
    with pytest.raises(RequestError, match="cannot be opened"):
        map_shards(made)
