"""Logs and metrics of every process."""

from crescendo.common.telemetry.jsonl import JsonlWriter, read_jsonl
from crescendo.common.telemetry.logs import setup_logging

__all__ = ["JsonlWriter", "read_jsonl", "setup_logging"]
