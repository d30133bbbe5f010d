"""Engines: what generates tokens. Only this folder imports vLLM."""

from crescendo.rollout.engine.base import Engine, EngineOutput, EngineRequest, ScoreOutput
from crescendo.rollout.engine.factory import make_engine
from crescendo.rollout.engine.settings import EngineSettings
from crescendo.rollout.engine.thread import EngineThread

__all__ = [
    "Engine",
    "EngineOutput",
    "EngineRequest",
    "EngineSettings",
    "EngineThread",
    "ScoreOutput",
    "make_engine",
]
