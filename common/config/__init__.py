"""The run file's schema, loading, checks and generated documentation."""

from crescendo.common.config import rl, schema
from crescendo.common.config.load import check_mapping, load_config, load_resolved, read_mapping, save_resolved, to_yaml
from crescendo.common.config.schema import Config

__all__ = [
    "Config",
    "check_mapping",
    "load_config",
    "load_resolved",
    "read_mapping",
    "rl",
    "save_resolved",
    "schema",
    "to_yaml",
]
