"""Architectures that the trainer can build. Another one is a file here and a line in the registry."""

from collections.abc import Mapping
from typing import Any

from crescendo.common.errors import ConfigError
from crescendo.trainer.megatron.architectures.base import (
    Architecture,
    Cut,
    Experts,
    ModelShape,
    Place,
    Rope,
    Rule,
    Shape,
)
from crescendo.trainer.megatron.architectures.llama import LLAMA
from crescendo.trainer.megatron.architectures.qwen2 import QWEN2
from crescendo.trainer.megatron.architectures.qwen3 import QWEN3
from crescendo.trainer.megatron.architectures.qwen3_moe import QWEN3_MOE

REGISTRY: dict[str, Architecture] = {each.name: each for each in (LLAMA, QWEN2, QWEN3, QWEN3_MOE)}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json names; raises ConfigError for an unknown one."""
    name = str(config.get("model_type", ""))
    if name not in REGISTRY:
        raise ConfigError(
            f"config.json: model_type is {name!r}; the trainer knows {', '.join(sorted(REGISTRY))}.",
            field="model.source",
            fix="Use a model of one of these architectures, or add a file to trainer/megatron/architectures.",
        )
    return REGISTRY[name]


__all__ = [
    "REGISTRY",
    "Architecture",
    "Cut",
    "Experts",
    "ModelShape",
    "Place",
    "Rope",
    "Rule",
    "Shape",
    "architecture_of",
]
