"""Checkpoints of the trainer: what it takes to go on exactly where it stood.

    rank<r>.safetensors    one a tensor-parallel rank (data-parallel rank 0 writes): weights/<name> and, unless
                           the next step forgets them, first/<name> and second/<name>, all float32
    trainer.json           versions, optimizer step, random state, layout

Every file is flushed to the disk and listed with its digest; the checkpoint counts once the controller's
manifest names it. Loading verifies digests first and changes nothing if one differs.
"""

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from crescendo.common import failpoints
from crescendo.common.errors import CheckpointError
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer import tensor_files
from crescendo.trainer.megatron.model import PolicyModel
from crescendo.trainer.optimizer import FlatAdamW

FORMAT_VERSION = 1
STATE_FILE = "trainer.json"


@dataclass
class TrainerState:
    """The scalars of a checkpoint. phase: sft | rl | empty, what the optimizer's moments belong to."""

    weight_version: int
    phase: str
    optimizer_steps: int
    has_moments: bool
    tensor_parallel: int
    architecture: str
    random_state: str = ""
    format_version: int = FORMAT_VERSION


def rank_file(tensor_rank: int) -> str:
    """Name of a tensor-parallel rank's file."""
    return f"rank{tensor_rank}.safetensors"


def save(root: Path, model: PolicyModel, optimizer: FlatAdamW, state: TrainerState) -> list[trainer_pb2.CheckpointFile]:
    """Writes this rank's files; returns them. Only data-parallel rank 0 has any."""
    if model.at.data_rank != 0:
        return []
    root.mkdir(parents=True, exist_ok=True)
    parts = {"weights": optimizer.main}
    if state.has_moments:
        parts |= {"first": optimizer.first, "second": optimizer.second}
    layout, tensors = [], []
    for part, buffer in parts.items():
        for name, (start, stop) in optimizer.ranges.items():
            layout.append((f"{part}/{name}", tuple(model.parameters[name].shape)))
            tensors.append(buffer[start:stop])
    path = root / rank_file(model.at.tensor_rank)
    files = [tensor_files.write_tensors(path, root, layout, torch.float32, tensors, {"format": "pt"})]
    failpoints.reach("trainer.saving")
    if model.at.speaks:
        state.random_state = base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()
        text = json.dumps(asdict(state), indent=1).encode()
        files.append(tensor_files.write_bytes(root / STATE_FILE, root, text))
    tensor_files.sync_folder(root)
    return files


def load(root: Path, files: list[trainer_pb2.CheckpointFile], model: PolicyModel, optimizer: FlatAdamW) -> TrainerState:
    """Restores weights, moments and random state; raises CheckpointError when anything does not fit."""
    tensor_files.verify(root, files)
    state = _read_state(root / STATE_FILE)
    if state.tensor_parallel != model.at.tensor_parallel or state.architecture != model.architecture.name:
        raise CheckpointError(
            f"checkpoint {root} is of {state.architecture} with tensor_parallel {state.tensor_parallel}; the trainer "
            f"runs {model.architecture.name} with {model.at.tensor_parallel}.",
            field="trainer.tensor_parallel",
            fix="Start the trainer with the checkpoint's layout.",
        )
    parts = {"weights": optimizer.main}
    if state.has_moments:
        parts |= {"first": optimizer.first, "second": optimizer.second}
    _read_tensors(root / rank_file(model.at.tensor_rank), parts, optimizer)
    if optimizer.main is not optimizer.working:
        optimizer.working.copy_(optimizer.main)
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
        state = TrainerState(**stored)
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", fix="Resume from an older checkpoint.") from None
    if state.format_version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {state.format_version}; this trainer reads {FORMAT_VERSION}.",
            fix="Use the Crescendo version that wrote it.",
        )
    return state


def _read_tensors(path: Path, parts: dict[str, torch.Tensor], optimizer: FlatAdamW) -> None:
    try:
        with safe_open(str(path), framework="pt") as stored:
            for part, buffer in parts.items():
                for name, (start, stop) in optimizer.ranges.items():
                    buffer[start:stop].copy_(stored.get_tensor(f"{part}/{name}").view(-1))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", fix="Resume from an older checkpoint.") from None
