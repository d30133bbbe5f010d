"""Safetensors written a tensor at a time."""

from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from crescendo.common.errors import CheckpointError
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer.tensor_files import verify, write_bytes, write_tensors


def written(
    folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], trainer_pb2.CheckpointFile]:
    tensors = {"a": torch.randn(3, 5), "b.weight": torch.randn(7), "c": torch.randn(4, 6).T}
    layout = [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
    entry = write_tensors(folder / "x.safetensors", folder, layout, dtype, tensors.values(), {"format": "pt"})
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}, entry


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_safetensors_package_reads_it_back(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors, entry = written(tmp_path, dtype)
    loaded = load_file(tmp_path / "x.safetensors")
    assert list(loaded) == list(tensors)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert (entry.num_bytes, entry.digest) == (len(raw), xxhash.xxh3_64_intdigest(raw))


def test_damage_is_found(tmp_path: Path) -> None:
    _, entry = written(tmp_path)
    note = write_bytes(tmp_path / "note.json", tmp_path, b"{}")
    verify(tmp_path, [entry, note])
    raw = bytearray((tmp_path / "x.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        verify(tmp_path, [entry, note])


@pytest.mark.parametrize("path", ["gone.json", "../outside.json"])
def test_missing_and_foreign_files_are_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "outside.json").write_text("{}")
    with pytest.raises(CheckpointError):
        verify(tmp_path / "sub", [trainer_pb2.CheckpointFile(path=path, num_bytes=2)])


def test_a_tensor_that_does_not_fit_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="5 elements"):
        write_tensors(tmp_path / "x", tmp_path, [("a", (2, 3))], torch.float32, [torch.zeros(5)], {})
