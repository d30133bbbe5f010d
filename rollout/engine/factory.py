"""Engines by name. The modules are imported when they are asked for: vLLM takes seconds and much memory."""

from pathlib import Path

from crescendo.common.errors import ConfigError
from crescendo.rollout.engine.base import Engine
from crescendo.rollout.engine.forced import OPTION, ForcedLengthEngine, read_lengths
from crescendo.rollout.engine.settings import EngineSettings

ENGINES = ("vllm", "reference", "scripted")


def make_engine(name: str, settings: EngineSettings) -> Engine:
    """Builds an engine on the calling thread, which then owns it. Raises ConfigError on an unknown name."""
    engine = _make(name, settings)
    forced = settings.options.get(OPTION)
    return ForcedLengthEngine(engine, read_lengths(Path(forced))) if forced else engine


def _make(name: str, settings: EngineSettings) -> Engine:
    if name == "vllm":
        from crescendo.rollout.engine.vllm_engine import VllmEngine

        return VllmEngine(settings)
    if name == "reference":
        from crescendo.rollout.engine.reference_engine import ReferenceEngine

        return ReferenceEngine(settings)
    if name == "scripted":
        from crescendo.rollout.engine.scripted import ScriptedEngine

        return ScriptedEngine(settings)
    raise ConfigError(
        f"rollout.engine is {name!r}; it must be one of {', '.join(ENGINES)}.",
        field="rollout.engine",
        fix="Use vllm.",
    )
