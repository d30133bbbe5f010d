"""Checkpoints of the trainer: what it takes to go on exactly where it stood, in any layout.

    part<r>.safetensors    of each rank r that holds unique weights, its pieces of weights/<name> and, unless the
                           next step forgets them, first/<name> and second/<name>, all float32, under Hugging Face
                           names; where a piece begins in its full tensor stands in the file's metadata
    trainer.json           versions, optimizer step, random state

Nothing in the files depends on the layout but how tensors are cut, so that a gang with another one reads the
slices that it needs (resharding at a stage boundary); the same rules as for model folders say which those are.
Every file is flushed to the disk and listed with its digest; the checkpoint counts once the controller's manifest
names it. Loading verifies digests first and changes nothing if one differs.

Saving is a collective (`prepare`) and then plain writing (`Prepared.write`), which may run in another thread when the
tensors were copied; ranks that share an optimizer's state only take part in the collective.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError

from crescendo.common import failpoints
from crescendo.common.errors import CheckpointError
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer import tensor_files
from crescendo.trainer.megatron.architectures import Cut
from crescendo.trainer.megatron.model import PolicyModel
from crescendo.trainer.megatron.weights import cut_range, import_weights, plain
from crescendo.trainer.optimizer import PARTS, FlatAdamW
from crescendo.trainer.pieces import STARTS, PieceFiles

FORMAT_VERSION = 2
STATE_FILE = "trainer.json"


@dataclass
class TrainerState:
    """The scalars of a checkpoint. phase: sft | rl | empty, what the optimizer's moments belong to."""

    weight_version: int
    phase: str
    optimizer_steps: int
    has_moments: bool
    architecture: str
    random_state: str = ""
    format_version: int = FORMAT_VERSION


@dataclass
class Prepared:
    """What a rank will write. tensors: in the order of layout, (key, shape)."""

    root: Path
    rank: int
    state: TrainerState | None
    layout: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    starts: dict[str, tuple[int, int]] = field(default_factory=dict)
    tensors: list[torch.Tensor] = field(default_factory=list)

    def write(self) -> list[trainer_pb2.CheckpointFile]:
        """Writes this rank's files and returns them."""
        if not self.layout:
            return []
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / f"part{self.rank}.safetensors"
        metadata = {"format": "pt", STARTS: json.dumps(self.starts)}
        files = [tensor_files.write_tensors(path, self.root, self.layout, torch.float32, self.tensors, metadata)]
        failpoints.reach("trainer.saving")
        if self.state is not None:
            text = json.dumps(asdict(self.state), indent=1).encode()
            files.append(tensor_files.write_bytes(self.root / STATE_FILE, self.root, text))
        tensor_files.sync_folder(self.root)
        return files


def prepare(root: Path, model: PolicyModel, optimizer: FlatAdamW, state: TrainerState, *, copy: bool) -> Prepared:
    """Collects this rank's pieces; every rank must call it. copy: into host memory, so that training may go on."""
    state.random_state = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()
    result = Prepared(root, model.at.rank, state if model.at.speaks else None)
    for part in PARTS if state.has_moments else PARTS[:1]:
        for name, start, axis, piece in _pieces(model, optimizer, part):
            key = f"{part}/{name}"
            result.layout.append((key, tuple(piece.shape)))
            result.starts[key] = (axis, start)
            result.tensors.append(piece.detach().to("cpu", copy=True) if copy else piece)
    return result


def _pieces(model: PolicyModel, optimizer: FlatAdamW, part: str) -> Iterator[tuple[str, int, int, torch.Tensor]]:
    """Name, start, axis and values of each piece that this rank writes."""
    at, shape = model.at, model.shape
    counted = {each.name: each.rule for each in model.where if each.is_counted_on(at)}
    for name, value in optimizer.values(part):
        if name not in counted or not at.holds_unique_weights:
            continue
        rule = counted[name]
        if rule.cut is Cut.NONE and at.tensor_rank > 0:
            continue
        axis = max(0, rule.cut.value)
        for full_name, full, piece in zip(rule.hugging_face, rule.shapes, rule.split(value, shape), strict=True):
            start, stop = cut_range(rule, full[axis], shape, at)
            yield full_name, start, axis, plain(piece, len(full)).narrow(axis, 0, stop - start)


def verify(root: Path, files: Sequence[trainer_pb2.CheckpointFile], rank: int, world_size: int) -> None:
    """Compares this rank's share of the files with what was recorded; raises CheckpointError for a difference."""
    tensor_files.verify(root, files[rank::world_size])


def load(
    root: Path, files: Sequence[trainer_pb2.CheckpointFile], model: PolicyModel, optimizer: FlatAdamW
) -> TrainerState:
    """Restores weights, moments and random state; raises CheckpointError when anything does not fit.

    Everything is looked up before anything changes.
    """
    state = _read_state(root / STATE_FILE)
    if state.architecture != model.architecture.name:
        raise CheckpointError(
            f"checkpoint {root} is of {state.architecture}; the trainer runs {model.architecture.name}.",
            field="model.source",
            fix="Load the model that the checkpoint was made of.",
        )
    parts = PARTS if state.has_moments else PARTS[:1]
    names = [name for each in model.where for name in each.rule.hugging_face]
    stored = PieceFiles(root, [file.path for file in files if file.path.endswith(".safetensors")])
    stored.require(f"{part}/{name}" for part in parts for name in names)
    try:
        for part in parts:
            for name, tensor in import_weights(stored.below(part), model.where, model.shape, model.at):
                optimizer.assign(part, name, tensor)
    except SafetensorError as error:
        raise CheckpointError(f"{root} cannot be read: {error}.", fix="Resume from an older checkpoint.") from None
    optimizer.weights_assigned()
    if state.has_moments:
        optimizer.step_count = state.optimizer_steps
    else:
        optimizer.reset()
    raw = bytearray(base64.b64decode(state.random_state))
    torch.set_rng_state(torch.frombuffer(raw, dtype=torch.uint8))
    return state


def _read_state(path: Path) -> TrainerState:
    try:
        stored = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", fix="Resume from an older checkpoint.") from None
    version = stored.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}; this trainer reads {FORMAT_VERSION}.",
            fix="Use the Crescendo version that wrote it.",
        )
    try:
        return TrainerState(**stored)
    except TypeError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", fix="Resume from an older checkpoint.") from None
