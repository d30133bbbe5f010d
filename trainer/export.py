"""The policy as a Hugging Face folder that transformers and vLLM load."""

import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import trainer_pb2
from crescendo.trainer import tensor_files
from crescendo.trainer.megatron.model import DTYPES, PolicyModel

# What a model folder holds besides weights and config.json.
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)

MAX_FILE_BYTES = 5 * 10**9  # what transformers' save_pretrained writes into one file at most


def export(model: PolicyModel, source: Path, target: Path, dtype: str) -> list[trainer_pb2.CheckpointFile]:
    """Writes the folder; source: the folder that the model was loaded from, for its tokenizer.

    Every rank must call it; only the rank that speaks writes and returns files, a tensor at a time. dtype: float32 |
    bfloat16, empty for the trainer's own. Raises RequestError for another one.
    """
    wanted = dtype or str(model.dtype).removeprefix("torch.")
    if wanted not in DTYPES:
        raise RequestError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.", field="dtype")
    if not model.at.speaks:
        for _ in model.export() if model.at.holds_unique_weights else ():
            pass
        return []
    target.mkdir(parents=True, exist_ok=True)
    files = list(_weights(model, target, wanted))
    config = {key: value for key, value in model.config.items() if key != "torch_dtype"} | {"dtype": wanted}
    files.append(tensor_files.write_bytes(target / "config.json", target, json.dumps(config, indent=2).encode()))
    for name in _COMPANIONS:
        if (source / name).is_file() and source.resolve() != target.resolve():
            files.append(tensor_files.write_bytes(target / name, target, (source / name).read_bytes()))
    tensor_files.sync_folder(target)
    return files


def _weights(model: PolicyModel, target: Path, dtype: str) -> Iterator[trainer_pb2.CheckpointFile]:
    """One file, or several with an index."""
    tensors = (tensor.data for tensor in model.export())
    runs = _runs(model.export_layout(), DTYPES[dtype].itemsize)
    where: dict[str, str] = {}
    total = 0
    for number, layout in enumerate(runs, start=1):
        name = f"model-{number:05d}-of-{len(runs):05d}.safetensors" if len(runs) > 1 else "model.safetensors"
        some = islice(tensors, len(layout))
        file = tensor_files.write_tensors(target / name, target, layout, DTYPES[dtype], some, {"format": "pt"})
        where |= {tensor: name for tensor, _ in layout}
        total += file.num_bytes
        yield file
    if len(runs) > 1:
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2)
        yield tensor_files.write_bytes(target / "model.safetensors.index.json", target, index.encode())


def _runs(layout: list[tuple[str, tuple[int, ...]]], item_bytes: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    """The layout in runs of at most MAX_FILE_BYTES, or one tensor that is larger."""
    runs: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    used = 0
    for name, shape in layout:
        size = math.prod(shape) * item_bytes
        if runs[-1] and used + size > MAX_FILE_BYTES:
            runs.append([])
            used = 0
        runs[-1].append((name, shape))
        used += size
    return runs
