"""The experience buffer: a ledger, trajectories and a redo log in Redis or Valkey."""

from crescendo.buffer.embedded import EmbeddedServer
from crescendo.buffer.memory import MemoryBuffer
from crescendo.buffer.protocol import Admission, Claim, ExperienceBuffer, NewGroup, Scored, Update, WeightRecord
from crescendo.buffer.redis_buffer import RedisBuffer, connect

__all__ = [
    "Admission",
    "Claim",
    "EmbeddedServer",
    "ExperienceBuffer",
    "MemoryBuffer",
    "NewGroup",
    "RedisBuffer",
    "Scored",
    "Update",
    "WeightRecord",
    "connect",
]
