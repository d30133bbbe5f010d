"""The policy as a Hugging Face folder that transformers and vLLM load."""

import json
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


def export(model: PolicyModel, source: Path, target: Path, dtype: str) -> list[trainer_pb2.CheckpointFile]:
    """Writes the folder; source: the folder that the model was loaded from, for its tokenizer.

    Every tensor-parallel rank must call it; only the rank that speaks writes and returns files. dtype: float32 |
    bfloat16, empty for the trainer's own. Raises RequestError for another one.
    """
    wanted = dtype or str(model.dtype).removeprefix("torch.")
    if wanted not in DTYPES:
        raise RequestError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.", field="dtype")
    if not model.at.speaks:
        for _ in model.export() if model.at.data_rank == 0 else ():
            pass
        return []
    target.mkdir(parents=True, exist_ok=True)
    files = [
        tensor_files.write_tensors(
            target / "model.safetensors",
            target,
            model.export_layout(),
            DTYPES[wanted],
            (tensor.data for tensor in model.export()),
            {"format": "pt"},
        )
    ]
    config = {key: value for key, value in model.config.items() if key != "torch_dtype"} | {"dtype": wanted}
    files.append(tensor_files.write_bytes(target / "config.json", target, json.dumps(config, indent=2).encode()))
    for name in _COMPANIONS:
        if (source / name).is_file() and source.resolve() != target.resolve():
            files.append(tensor_files.write_bytes(target / name, target, (source / name).read_bytes()))
    tensor_files.sync_folder(target)
    return files
