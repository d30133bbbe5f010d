"""Finds the shape of a run's model: made from nothing, in a folder, or of the hub."""

import json
import re
from pathlib import Path
from typing import Final

from crescendo.common.config.schema import ModelConfig
from crescendo.common.errors import DataError
from crescendo.common.planner.shape import Shape

HUB_TIMEOUT_S: Final = 10.0
_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def shape_of(model: ModelConfig, *, fetch: bool = False) -> Shape | None:
    """None where there is no config.json. fetch: also of the hub or its cache. Raises DataError for a bad one."""
    if model.source == "scratch":
        return Shape.of_scratch(model.scratch)
    path = Path(model.source) / "config.json"
    text = None
    try:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
        elif fetch and _HUB_NAME.fullmatch(model.source):
            text = _from_hub(model.source, model.revision or "main")
        return Shape.of_config(json.loads(text)) if text is not None else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.", field="model.source") from None


def _from_hub(name: str, revision: str) -> str | None:
    """The text of config.json; None when it cannot be had. One request, without the hub's own patience."""
    # Only here: both are slow to import.
    import httpx
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).read_text(encoding="utf-8")
    url = hf_hub_url(name, "config.json", revision=revision)
    try:
        answer = httpx.get(url, headers=build_hf_headers(), follow_redirects=True, timeout=HUB_TIMEOUT_S)
    except httpx.HTTPError:
        return None
    return answer.text if answer.is_success else None
