"""Full tensors out of pieces in several safetensors files, of which only what is asked for is read.

The files are those of trainer/checkpoint.py: each tensor's pieces lie side by side along one axis, and the metadata
say at which index of it a piece begins.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from crescendo.common.errors import CheckpointError
from crescendo.trainer.megatron.weights import LazyTensor

STARTS = "starts"


@dataclass(frozen=True)
class _Piece:
    """start: on the axis; stored: the piece's slice of its file."""

    start: int
    stored: Any

    @property
    def shape(self) -> list[int]:
        return list(self.stored.get_shape())


class _Pieces:
    """A full tensor; axis: the one along which the pieces lie."""

    def __init__(self, axis: int, pieces: Sequence[_Piece]) -> None:
        self._axis = axis
        self._pieces = sorted(pieces, key=lambda piece: piece.start)

    def is_whole(self) -> bool:
        """Whether the pieces meet without gap or overlap."""
        end = 0
        for piece in self._pieces:
            if piece.start != end:
                return False
            end += piece.shape[self._axis]
        return True

    def get_shape(self) -> list[int]:
        shape = self._pieces[0].shape
        shape[self._axis] = sum(piece.shape[self._axis] for piece in self._pieces)
        return shape

    def __getitem__(self, index: Any) -> torch.Tensor:
        shape = self.get_shape()
        given = index if isinstance(index, tuple) else (index,)
        wanted = [slice(*each.indices(size)) for each, size in zip(given, shape, strict=False)]
        wanted += [slice(0, size) for size in shape[len(wanted) :]]
        start, stop = wanted[self._axis].start, wanted[self._axis].stop
        found = []
        for piece in self._pieces:
            low, high = max(start, piece.start), min(stop, piece.start + piece.shape[self._axis])
            if low < high:
                wanted[self._axis] = slice(low - piece.start, high - piece.start)
                found.append(piece.stored[tuple(wanted)])
        if not found:
            shape[self._axis] = 0
            return torch.empty(shape)
        return found[0] if len(found) == 1 else torch.cat(found, dim=self._axis)


class _Below:
    """The tensors whose keys begin with a prefix."""

    def __init__(self, files: "PieceFiles", prefix: str) -> None:
        self.path = files.path
        self._files, self._prefix = files, prefix

    def slice(self, name: str) -> LazyTensor:
        return self._files.tensors[f"{self._prefix}/{name}"]


class PieceFiles:
    """The tensors of a checkpoint, by key. Raises CheckpointError for a file that cannot be read."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.path = root
        found: dict[str, list[_Piece]] = {}
        axes: dict[str, int] = {}
        for name in names:
            try:
                file: Any = safe_open(str(root / name), framework="pt")
                starts = json.loads(file.metadata()[STARTS])
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    axes[key], start = starts[key]
                    found.setdefault(key, []).append(_Piece(start, file.get_slice(key)))
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"{root / name} cannot be read: {error}.", fix="Resume from an older checkpoint."
                ) from None
        self.tensors = {key: _Pieces(axes[key], pieces) for key, pieces in found.items()}

    def require(self, keys: Iterable[str]) -> None:
        """Raises CheckpointError for the first tensor that is missing or has a gap."""
        for key in keys:
            if key not in self.tensors or not self.tensors[key].is_whole():
                raise CheckpointError(
                    f"checkpoint {self.path}: tensor {key} is missing or has a gap.",
                    fix="Resume from an older checkpoint.",
                )

    def below(self, prefix: str) -> _Below:
        """The tensors of a part, as a source for `import_weights`."""
        return _Below(self, prefix)
