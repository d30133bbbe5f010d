"""Weights between Hugging Face names and the rank's Megatron parameters, a tensor at a time.

`placed` says which stage and which expert rank hold what; `import_weights` reads a rank's rows or columns from a
source of full tensors (a model folder here, a checkpoint in trainer/checkpoint.py); `export_tensors` yields full
tensors, joined over ranks.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from crescendo.common.errors import DataError
from crescendo.trainer.megatron.architectures import Cut, ModelShape, Place, Rule, Shape
from crescendo.trainer.megatron.parallel import Layout


class LazyTensor(Protocol):
    """A stored tensor of which only what is asked for is read, as safetensors' slices are."""

    def get_shape(self) -> Sequence[int]:
        """The full shape."""
        ...

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Rows by a slice, columns by a pair of slices."""
        ...


class TensorSource(Protocol):
    """Full tensors by Hugging Face name. path: for messages."""

    path: Path

    def slice(self, name: str) -> LazyTensor:
        """The tensor; raises a CrescendoError when it is missing."""
        ...


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

    def slice(self, name: str) -> LazyTensor:
        """A lazily read tensor."""
        if name not in self._where:
            raise DataError(
                f"model folder {self.path}: tensor {name} is missing.",
                field="model.source",
                fix="The weights do not fit config.json; download or convert the model again.",
            )
        found: LazyTensor = self._open(self._where[name]).get_slice(name)
        return found


def padded_vocabulary(shape: ModelShape, tensor_parallel: int) -> int:
    """Vocabulary rows, rounded up so that every rank has as many."""
    return -(-shape.vocab_size // tensor_parallel) * tensor_parallel


@dataclass(frozen=True)
class Placed:
    """A rule in a layout. name: of the parameter on the ranks of that stage and, for an expert, that expert rank."""

    rule: Rule
    name: str
    stage: int
    expert_rank: int

    def is_on(self, at: Layout) -> bool:
        """Whether the rank has the parameter. Dense ones lie on every expert rank."""
        here = self.rule.expert is None or self.expert_rank == at.expert_rank
        return here and self.stage == at.pipeline_rank

    def is_counted_on(self, at: Layout) -> bool:
        """As `is_on`, but true on one expert rank alone, and for one of tied weights."""
        return self.is_on(at) and self.expert_rank == at.expert_rank and not self.rule.is_copy


def placed(rules: Sequence[Rule], shape: ModelShape, at: Layout) -> list[Placed]:
    """Where each rule's parameter lies. Layers and experts are dealt out in equal runs, in order."""
    last = at.pipeline_parallel - 1
    layers = shape.num_layers // at.pipeline_parallel
    experts = (shape.experts.count if shape.experts else 1) // at.expert_parallel
    result = []
    for rule in rules:
        if rule.is_copy and at.pipeline_parallel == 1:
            continue
        stage = {Place.FIRST: 0, Place.LAST: last, Place.LAYER: rule.layer // layers}[rule.place]
        expert = rule.expert or 0
        name = rule.megatron.format(layer=rule.layer % layers, expert=expert % experts)
        result.append(Placed(rule, name, stage, expert // experts))
    return result


def import_weights(
    source: TensorSource, where: Sequence[Placed], shape: ModelShape, at: Layout
) -> Iterator[tuple[str, torch.Tensor]]:
    """This rank's parameters from full tensors, one at a time, of which it reads only its own slices.

    Raises DataError for a missing or misshapen tensor.
    """
    for each in where:
        if not each.is_on(at):
            continue
        pieces = []
        for name, full in zip(each.rule.hugging_face, each.rule.shapes, strict=True):
            found = source.slice(name)
            if tuple(found.get_shape()) != full:
                raise DataError(
                    f"{source.path}: tensor {name} has shape {tuple(found.get_shape())}; config.json asks for {full}.",
                    field="model.source",
                )
            pieces.append(_read_piece(found, each.rule, shape, at))
        yield each.name, each.rule.fuse(pieces, shape)


def _read_piece(source: LazyTensor, rule: Rule, shape: ModelShape, at: Layout) -> torch.Tensor:
    if rule.cut is Cut.NONE or at.tensor_parallel == 1:
        return source[:]
    start, stop = cut_range(rule, source.get_shape()[rule.cut.value], shape, at)
    piece = source[start:stop] if rule.cut is Cut.ROWS else source[:, start:stop]
    if not rule.is_vocabulary:
        return piece
    rows = padded_vocabulary(shape, at.tensor_parallel) // at.tensor_parallel
    return torch.nn.functional.pad(piece, (0, 0, 0, rows - len(piece)))


def cut_range(rule: Rule, size: int, shape: ModelShape, at: Layout) -> tuple[int, int]:
    """This rank's part of a full tensor's cut axis; `size` is its length. Padding is no part of it."""
    if rule.cut is Cut.NONE:
        return 0, size
    whole = padded_vocabulary(shape, at.tensor_parallel) if rule.is_vocabulary else size
    width = whole // at.tensor_parallel
    return min(at.tensor_rank * width, size), min((at.tensor_rank + 1) * width, size)


class Exported(NamedTuple):
    """A full tensor in Hugging Face form. data has its elements in order, maybe with the first axis in two."""

    name: str
    shape: tuple[int, ...]
    data: torch.Tensor


def plain(data: torch.Tensor, ndim: int) -> torch.Tensor:
    """The tensor with leading axes joined, so that ndim are left."""
    return data.reshape(-1, *data.shape[data.ndim - ndim + 1 :])


def export_shapes(where: Sequence[Placed]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and full shapes of what `export_tensors` yields."""
    kept = [each.rule for each in where if not each.rule.is_copy]
    return [pair for rule in kept for pair in zip(rule.hugging_face, rule.shapes, strict=True)]


def export_tensors(
    parameters: Mapping[str, torch.Tensor], where: Sequence[Placed], shape: ModelShape, at: Layout
) -> Iterator[Exported]:
    """All weights, a tensor at a time, on every rank that holds unique weights; they must iterate to the end.

    A tensor is joined over tensor-parallel ranks, then sent to the other experts' ranks and the other stages.
    On one rank the data are views of the parameters, which the next step changes.
    """
    dtype = next(iter(parameters.values())).dtype
    for each in where:
        rule = each.rule
        if rule.is_copy:
            continue
        mine = each.is_on(at)
        pieces = rule.split(parameters[each.name], shape) if mine else [None] * len(rule.shapes)
        for name, full, piece in zip(rule.hugging_face, rule.shapes, pieces, strict=True):
            if piece is not None:
                data = _joined(piece, rule, full, shape, at)
            else:
                data = torch.empty(full, dtype=dtype, device=at.device)
            yield Exported(name, full, _everywhere(data, each, full, at))


def _joined(piece: torch.Tensor, rule: Rule, full: Shape, shape: ModelShape, at: Layout) -> torch.Tensor:
    """The pieces of all tensor-parallel ranks; padding rows of a vocabulary are cut off."""
    if rule.cut is Cut.NONE or at.tensor_group is None:
        return piece[: shape.vocab_size] if rule.is_vocabulary else piece
    whole = plain(piece, len(full)).contiguous()
    parts = [torch.empty_like(whole) for _ in range(at.tensor_parallel)]
    dist.all_gather(parts, whole, group=at.tensor_group)
    joined = torch.cat(parts, dim=rule.cut.value)
    return joined[: shape.vocab_size] if rule.is_vocabulary else joined


def _everywhere(data: torch.Tensor, each: Placed, full: Shape, at: Layout) -> torch.Tensor:
    """Broadcast from the expert rank and the stage that hold it."""
    split_experts = at.expert_group is not None and each.rule.expert is not None
    if split_experts or at.pipeline_group is not None:
        data = data.reshape(full).contiguous()
    if split_experts and each.stage == at.pipeline_rank:
        dist.broadcast(data, group=at.expert_group, group_src=each.expert_rank)
    if at.pipeline_group is not None:
        dist.broadcast(data, group=at.pipeline_group, group_src=each.stage)
    return data
