"""Finds the shape of a run's model, as far as this machine knows it."""

import json
from pathlib import Path

from crescendo.common.config.schema import ModelConfig
from crescendo.common.errors import DataError
from crescendo.common.planner.shape import Shape


def shape_of(model: ModelConfig) -> Shape | None:
    """Of a scratch model or a folder; None for a hub name, whose config.json is not here. Raises DataError."""
    if model.source == "scratch":
        return Shape.of_scratch(model.scratch)
    path = Path(model.source) / "config.json"
    if not path.is_file():
        return None
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.", field="model.source") from None
    return Shape.of_config(loaded)
