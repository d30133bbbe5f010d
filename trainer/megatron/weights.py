"""Weights between Hugging Face folders and the rank's Megatron parameters, a tensor at a time.

`HuggingFaceFolder` reads safetensors lazily, only a rank's rows or columns; `import_weights` fills the model;
`export_tensors` yields full tensors under Hugging Face names, gathered over tensor-parallel ranks.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from crescendo.common.errors import DataError
from crescendo.trainer.megatron.architectures import Cut, ModelShape, Rule
from crescendo.trainer.megatron.parallel import Layout


class HuggingFaceFolder:
    """A model folder: config.json and safetensors, in one file or many. Raises DataError when damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = self._json("config.json")
        self._files: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        index = path / "model.safetensors.index.json"
        if index.exists():
            self._where = dict(self._json(index.name)["weight_map"])
        else:
            self._where = dict.fromkeys(self._open("model.safetensors").keys(), "model.safetensors")

    def _json(self, name: str) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = json.loads((self.path / name).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise DataError(
                f"model folder {self.path}: {name} cannot be read: {error}.",
                field="model.source",
                fix="Give a folder in Hugging Face format: config.json, tokenizer files, safetensors.",
            ) from None
        return loaded

    def _open(self, name: str) -> Any:
        if name not in self._files:
            try:
                self._files[name] = safe_open(str(self.path / name), framework="pt")
            except (OSError, SafetensorError) as error:
                raise DataError(
                    f"model folder {self.path}: {name} cannot be read: {error}.", field="model.source"
                ) from None
        return self._files[name]

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._where)

    def slice(self, name: str) -> Any:
        """A lazily read tensor; index it to read rows or columns."""
        if name not in self._where:
            raise DataError(
                f"model folder {self.path}: tensor {name} is missing.",
                field="model.source",
                fix="The weights do not fit config.json; download or convert the model again.",
            )
        return self._open(self._where[name]).get_slice(name)


def padded_vocabulary(shape: ModelShape, tensor_parallel: int) -> int:
    """Vocabulary rows, rounded up so that every rank has as many."""
    return -(-shape.vocab_size // tensor_parallel) * tensor_parallel


def import_weights(
    parameters: Mapping[str, torch.Tensor], folder: HuggingFaceFolder, rules: list[Rule], shape: ModelShape, at: Layout
) -> None:
    """Copies a folder's weights into this rank's parameters; raises DataError for missing or misshapen ones."""
    for rule in rules:
        pieces = [_read_piece(folder.slice(name), rule, shape, at) for name in rule.hugging_face]
        parameter = parameters[rule.megatron]
        fused = rule.fuse(pieces, shape)
        if fused.shape != parameter.shape:
            raise DataError(
                f"model folder {folder.path}: {', '.join(rule.hugging_face)} give shape {tuple(fused.shape)}; "
                f"config.json asks for {tuple(parameter.shape)}.",
                field="model.source",
            )
        parameter.copy_(fused)


def _read_piece(source: Any, rule: Rule, shape: ModelShape, at: Layout) -> torch.Tensor:
    size = source.get_shape()
    parts, part = at.tensor_parallel, at.tensor_rank
    if rule.cut is Cut.NONE or parts == 1:
        whole: torch.Tensor = source[:]
        return whole
    if rule.is_vocabulary:
        rows = padded_vocabulary(shape, parts) // parts
        real: torch.Tensor = source[min(part * rows, size[0]) : min((part + 1) * rows, size[0])]
        return torch.nn.functional.pad(real, (0, 0, 0, rows - len(real)))
    width = size[rule.cut.value] // parts
    cut = slice(part * width, (part + 1) * width)
    piece: torch.Tensor = source[cut] if rule.cut is Cut.ROWS else source[:, cut]
    return piece


Layouts = list[tuple[str, tuple[int, ...]]]


class Exported(NamedTuple):
    """A full tensor in Hugging Face form. data has its elements in order, maybe with the first axis in two."""

    name: str
    shape: tuple[int, ...]
    data: torch.Tensor


def _plain_shape(data: torch.Tensor, ndim: int) -> tuple[int, ...]:
    """The shape with leading axes joined, so that ndim are left."""
    tail = tuple(data.shape[data.ndim - ndim + 1 :])
    return (data.numel() // max(1, math.prod(tail)), *tail)


def export_shapes(
    parameters: Mapping[str, torch.Tensor], rules: list[Rule], shape: ModelShape, at: Layout
) -> list[tuple[str, tuple[int, ...]]]:
    """Names and full shapes of what `export_tensors` yields, without gathering anything."""
    result = []
    for rule in rules:
        parameter = parameters[rule.megatron]
        for name, piece in zip(rule.hugging_face, rule.split(parameter, shape), strict=True):
            full = list(_plain_shape(piece, parameter.ndim))
            if rule.is_vocabulary:
                full[0] = shape.vocab_size
            elif rule.cut is not Cut.NONE:
                full[rule.cut.value] *= at.tensor_parallel
            result.append((name, tuple(full)))
    return result


def export_tensors(
    parameters: Mapping[str, torch.Tensor], rules: list[Rule], shape: ModelShape, at: Layout
) -> Iterator[Exported]:
    """All weights, a tensor at a time. Every tensor-parallel rank must iterate to the end.

    Without tensor parallelism the data are views of the parameters, which the next step changes.
    """
    for rule in rules:
        parameter = parameters[rule.megatron]
        for name, piece in zip(rule.hugging_face, rule.split(parameter, shape), strict=True):
            data = _gathered(piece, parameter.ndim, rule, shape, at)
            yield Exported(name, _plain_shape(data, parameter.ndim), data)


def _gathered(piece: torch.Tensor, ndim: int, rule: Rule, shape: ModelShape, at: Layout) -> torch.Tensor:
    """The pieces of all tensor-parallel ranks, joined; padding rows of a vocabulary are cut off."""
    if rule.cut is Cut.NONE or at.tensor_group is None:
        return piece[: shape.vocab_size] if rule.is_vocabulary else piece
    whole = piece.reshape(_plain_shape(piece, ndim)).contiguous()
    parts = [torch.empty_like(whole) for _ in range(at.tensor_parallel)]
    dist.all_gather(parts, whole, group=at.tensor_group)
    joined = torch.cat(parts, dim=rule.cut.value)
    return joined[: shape.vocab_size] if rule.is_vocabulary else joined
