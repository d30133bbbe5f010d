"""The factory of data sources."""

from collections.abc import Callable, Mapping, Sequence

from crescendo.common.config.schema import DataSourceConfig
from crescendo.common.errors import ConfigError
from crescendo.controller.data.hub import HubSource
from crescendo.controller.data.jsonl import JsonlSource
from crescendo.controller.data.parquet import ParquetSource
from crescendo.controller.data.rows import Source
from crescendo.controller.data.tasks import TaskSource, create_task

Factory = Callable[[DataSourceConfig, Sequence[str]], Source]


def _hub(config: DataSourceConfig, columns: Sequence[str]) -> Source:
    return HubSource(config.path, config.subset, config.split, columns)


def _jsonl(config: DataSourceConfig, columns: Sequence[str]) -> Source:
    return JsonlSource(config.path)


def _parquet(config: DataSourceConfig, columns: Sequence[str]) -> Source:
    return ParquetSource(config.path, columns)


def _task(config: DataSourceConfig, columns: Sequence[str]) -> Source:
    return TaskSource(create_task(config.path, config.options), config.num_prompts, config.seed)


SOURCES: Mapping[str, Factory] = {"hub": _hub, "jsonl": _jsonl, "parquet": _parquet, "task": _task}


def open_source(config: DataSourceConfig, columns: Sequence[str] = ()) -> Source:
    """The source that a config names; columns are the data set's columns that are needed (empty: all).

    Raises ConfigError on an unknown kind of source or task; files are opened when rows are read.
    """
    factory = SOURCES.get(config.name)
    if factory is None:
        raise ConfigError(
            f"data source name is {config.name!r}; it must be one of {', '.join(SOURCES)}.",
            field="data.name",
            fix="Choose one of the kinds named.",
        )
    return factory(config, columns)
