"""Full tensors out of pieces: any slice is the slice of the whole; gaps and damage are told."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from crescendo.common.errors import CheckpointError
from crescendo.trainer.pieces import STARTS, PieceFiles

WHOLE = torch.arange(60.0).view(10, 6)


def write(root: Path, axis: int, ends: list[int]) -> PieceFiles:
    names = []
    for number, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        piece = WHOLE.narrow(axis, start, stop - start).contiguous()
        names.append(f"part{number}.safetensors")
        save_file({"weights/w": piece}, root / names[-1], {STARTS: json.dumps({"weights/w": [axis, start]})})
    return PieceFiles(root, reversed(names))


@given(st.data())
def test_slices_of_pieces_are_slices_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, 1))
    size = WHOLE.shape[axis]
    ends = sorted({*data.draw(st.lists(st.integers(1, size), max_size=3)), size})
    stored = write(tmp_path_factory.mktemp("pieces"), axis, ends)
    stored.require(["weights/w"])
    found = stored.below("weights").slice("w")
    assert list(found.get_shape()) == list(WHOLE.shape)
    rows = slice(*sorted(data.draw(st.tuples(st.integers(0, 10), st.integers(0, 10)))))
    columns = slice(*sorted(data.draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))))
    assert torch.equal(found[:], WHOLE)
    assert torch.equal(found[rows], WHOLE[rows])
    assert torch.equal(found[:, columns], WHOLE[:, columns])


def test_a_missing_piece_and_a_damaged_file_are_told(tmp_path: Path) -> None:
    write(tmp_path, 0, [4, 10])
    with pytest.raises(CheckpointError, match="missing or has a gap"):
        PieceFiles(tmp_path, ["part1.safetensors"]).require(["weights/w"])
    with pytest.raises(CheckpointError, match="first/w is missing"):
        PieceFiles(tmp_path, ["part0.safetensors", "part1.safetensors"]).require(["first/w"])
    (tmp_path / "part1.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="cannot be read"):
        PieceFiles(tmp_path, ["part1.safetensors"])
