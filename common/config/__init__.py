"""The run file's schema, loading, checks and generated documentation."""

from crescendo.common.config import rl, schema

__all__ = ["rl", "schema"]
