"""Prompts and demonstrations from hub data sets, JSONL and Parquet files, and procedural tasks."""

from crescendo.controller.data.demonstrations import demonstrations
from crescendo.controller.data.prompts import PromptSet, load_prompts
from crescendo.controller.data.rows import Row, Source
from crescendo.controller.data.sources import open_source

__all__ = ["PromptSet", "Row", "Source", "demonstrations", "load_prompts", "open_source"]
