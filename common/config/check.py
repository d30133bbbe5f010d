"""What a run file must satisfy: each field's own bounds, then rules over several fields.

A rule is a generator over a `Config` that yields problems and changes nothing; `RULES` lists them. Bounds
stand beside the fields (fields.Rule); here they are only read.
"""

import dataclasses
import glob
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fsspec.registry import available_protocols

from crescendo.common.config import check_deterministic, check_layouts, check_rewards, check_rl
from crescendo.common.config.fields import Rule
from crescendo.common.config.problems import Problem, without_consequences
from crescendo.common.config.schema import Config, DataSourceConfig
from crescendo.common.config.tree import join, shorten

PROMPT_FIELDS = ("question", "answer", "difficulty", "domain", "id")
DEMONSTRATION_FIELDS = ("question", "response", "id")
_URL = re.compile(r"(redis|rediss|unix)://.+")


def check(config: Config) -> list[Problem]:
    """Every broken bound and rule; rules whose fields are out of bounds are left out."""
    bounds = list(_bounds(config, ""))
    return without_consequences(bounds, [problem for rule in RULES for problem in rule(config)])


def check_inputs(config: Config) -> list[Problem]:
    """Input files that the run file names and that are not there."""
    return [
        Problem(f"{path}.path", f"{path}.path is {source.path}, where there is no file.", "Correct the path.")
        for path, source in data_sources(config)
        if source.name in ("jsonl", "parquet") and source.path and "://" not in source.path
        if not Path(source.path).exists() and not glob.glob(source.path)
    ]


def data_sources(config: Config) -> list[tuple[str, DataSourceConfig]]:
    """The data sources that the run reads, with their paths in the run file."""
    found = [
        (f"steps[{index}].sft.data", step.sft.data) for index, step in enumerate(config.steps) if step.kind == "sft"
    ]
    if any(step.kind == "rl" for step in config.steps):
        found += [("data.train", config.data.train), ("data.validation", config.data.validation)]
    return found


def _bounds(value: Any, path: str) -> Iterator[Problem]:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            below = getattr(value, field.name)
            rule = field.metadata["rule"]
            yield from _broken_bounds(below, rule, join(path, field.name))
            yield from _bounds(below, join(path, field.name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _bounds(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _bounds(item, join(path, str(key)))


def describe_bounds(rule: Rule) -> str:
    """A field's bounds in words; empty when it has none."""
    parts = []
    if rule.choices:
        parts.append("one of " + ", ".join(rule.choices))
    if rule.pattern:
        parts.append(f"matches {rule.pattern}")
    if rule.at_least is not None and rule.at_most is not None:
        parts.append(f"{rule.at_least:g} to {rule.at_most:g}")
    elif rule.at_least is not None:
        parts.append(f"at least {rule.at_least:g}")
    elif rule.above is not None and rule.at_most is not None:
        parts.append(f"above {rule.above:g}, at most {rule.at_most:g}")
    elif rule.above is not None:
        parts.append(f"above {rule.above:g}")
    elif rule.at_most is not None:
        parts.append(f"at most {rule.at_most:g}")
    return "; ".join(parts)


def _broken_bounds(value: Any, rule: Rule, path: str) -> Iterator[Problem]:
    if isinstance(value, str):
        broken = bool(rule.choices) and value not in rule.choices
        broken = broken or (bool(rule.pattern) and re.fullmatch(rule.pattern, value) is None)
        if broken and not value:
            yield Problem(path, f"{path} is not set; it is required and {describe_bounds(rule)}.", f"Set {path}.")
            return
    elif isinstance(value, int | float):
        broken = (
            (rule.at_least is not None and value < rule.at_least)
            or (rule.above is not None and value <= rule.above)
            or (rule.at_most is not None and value > rule.at_most)
        )
    else:
        return
    if broken:
        unit = f" {rule.unit}" if rule.unit else ""
        must = f"it must be {describe_bounds(rule)}" if not rule.pattern else f"it must match {rule.pattern}"
        yield Problem(path, f"{path} is {shorten(value)}{unit}; {must} ({rule.doc}).", f"Change {path}.")


def _steps(config: Config) -> Iterator[Problem]:
    if not config.steps:
        yield Problem(
            "steps", "steps is empty; a run has at least one step.", "Add a step with kind: rl and its stages."
        )


def _model(config: Config) -> Iterator[Problem]:
    if not config.model.source:
        yield Problem(
            "model.source",
            "model.source is not set; it is required.",
            "Set it to scratch, a folder in Hugging Face format, or a hub name.",
        )
    elif config.model.source == "scratch":
        yield from _scratch(config)


def _scratch(config: Config) -> Iterator[Problem]:
    shape = config.model.scratch
    at = "model.scratch"
    if len(shape.vocabulary) < 3 or len(set(shape.vocabulary)) != len(shape.vocabulary):
        yield Problem(
            f"{at}.vocabulary",
            f"{at}.vocabulary is {shorten(shape.vocabulary)}; it must be at least 3 characters, each once.",
            "List every character of the task, the padding among them, the end of sequence last.",
        )
    elif len(shape.padding) != 1 or shape.padding not in shape.vocabulary[:-1]:
        yield Problem(
            f"{at}.padding",
            f"{at}.padding is {shape.padding!r}; it must be one character of the vocabulary, and not the last.",
            "Add it to the vocabulary, before the end of sequence.",
            (f"{at}.vocabulary",),
        )
    if shape.num_heads % shape.num_kv_heads:
        yield Problem(
            f"{at}.num_kv_heads",
            f"{at}.num_kv_heads is {shape.num_kv_heads}; it must divide num_heads, {shape.num_heads}.",
            "Choose a divisor.",
            (f"{at}.num_heads",),
        )
    if shape.head_dim % 2:
        yield Problem(
            f"{at}.head_dim",
            f"{at}.head_dim is {shape.head_dim}; rotary embeddings need it to be even.",
            f"Use {shape.head_dim + 1}.",
        )


def _data(config: Config) -> Iterator[Problem]:
    for path, source in data_sources(config):
        if not source.path:
            yield Problem(
                f"{path}.path",
                f"{path}.path is not set; a source of kind {source.name} needs it.",
                "Set it to a file, a hub name, or the name of a task.",
            )
        yield from _columns(path, source)
    if "{question}" not in config.data.template:
        yield Problem(
            "data.template",
            f"data.template is {shorten(config.data.template)}; it must contain {{question}}.",
            "Put {question} where the question belongs.",
        )


def _columns(path: str, source: DataSourceConfig) -> Iterator[Problem]:
    known = DEMONSTRATION_FIELDS if path.endswith(".sft.data") else PROMPT_FIELDS
    for ours, theirs in source.columns.items():
        if ours not in known or not theirs:
            yield Problem(
                f"{path}.columns.{ours}",
                f"{path}.columns maps {ours!r} to {theirs!r}; it must map {', '.join(known)} to a column's name.",
                "Write our field on the left, the data set's column on the right.",
            )


def _buffer(config: Config) -> Iterator[Problem]:
    external = config.buffer.name == "external"
    if external and not _URL.fullmatch(config.buffer.url):
        yield Problem(
            "buffer.url",
            f"buffer.url is {config.buffer.url!r}; an external buffer needs a redis://, rediss:// or unix:// URL.",
            "Set buffer.url, or buffer.name to embedded.",
        )
    if not external and config.buffer.url:
        yield Problem(
            "buffer.url",
            "buffer.url is set, but buffer.name is embedded, which starts a Valkey of the run's own.",
            "Set buffer.name to external, or remove the URL.",
        )


def _archive(config: Config) -> Iterator[Problem]:
    protocol, is_url, _ = config.archive.url.partition("://")
    if is_url and not set(protocol.split("::")) <= set(available_protocols()):
        yield Problem(
            "archive.url",
            f"archive.url is {config.archive.url!r}; fsspec knows no {protocol}://.",
            "Give a folder, or a URL such as s3://bucket/path.",
        )


def _checkpoint_store(config: Config) -> Iterator[Problem]:
    at, store = "checkpoint_store", config.checkpoint_store
    protocol, is_url, _ = store.url.partition("://")
    if is_url and (protocol not in available_protocols() or protocol == "memory"):
        why = "lasts no longer than a process" if protocol == "memory" else "is nothing that fsspec knows"
        yield Problem(
            f"{at}.url", f"{at}.url is {store.url!r}; {protocol}:// {why}.", "Give a folder, or s3://bucket/path."
        )
    for name in ("credentials", "carries_inputs"):
        if getattr(store, name) and not store.url:
            yield Problem(
                f"{at}.{name}", f"{at}.{name} is set, but {at}.url is empty: there is no store.", f"Set {at}.url."
            )
    if store.carries_inputs and config.trainer.weight_channel == "disk":
        yield Problem(
            "trainer.weight_channel",
            f"trainer.weight_channel is disk, but {at}.carries_inputs says that workers share no folder.",
            "Choose tcp or nccl.",
        )


def _rollout(config: Config) -> Iterator[Problem]:
    rollout = config.rollout
    if rollout.lease_s <= rollout.flush_s:
        yield Problem(
            "rollout.lease_s",
            f"rollout.lease_s is {rollout.lease_s:g} s; it must be longer than rollout.flush_s, {rollout.flush_s:g} s, "
            "or every claim expires before its first flush.",
            "Raise lease_s to several times flush_s.",
            ("rollout.flush_s",),
        )


def _parallel(config: Config) -> Iterator[Problem]:
    sizes = [
        ("trainer.tensor_parallel", config.trainer.tensor_parallel),
        ("rollout.tensor_parallel", config.rollout.tensor_parallel),
    ]
    for path, stage in check_rl.stages(config):
        sizes += [(f"{path}.layout.tensor_parallel", stage.layout.tensor_parallel or 1)]
        sizes += [(f"{path}.layout.engine_tensor_parallel", stage.layout.engine_tensor_parallel or 1)]
    shape = config.model.scratch
    for path, size in sizes if config.model.source == "scratch" else ():
        for name, width in (("num_heads", shape.num_heads), ("num_kv_heads", shape.num_kv_heads)):
            if width % size:
                yield Problem(
                    path,
                    f"{path} is {size}; it must divide model.scratch.{name}, {width}.",
                    "Choose a common divisor of num_heads and num_kv_heads.",
                    (f"model.scratch.{name}",),
                )
                break
    yield from _pipeline(config)
    yield from _experts(config)


def _pipeline(config: Config) -> Iterator[Problem]:
    layers = config.model.scratch.num_layers
    sizes = [("trainer.pipeline_parallel", config.trainer.pipeline_parallel)]
    sizes += [
        (f"{path}.layout.pipeline_parallel", stage.layout.pipeline_parallel or 1)
        for path, stage in check_rl.stages(config)
    ]
    for path, size in sizes if config.model.source == "scratch" else ():
        if layers % size:
            yield Problem(
                path,
                f"{path} is {size}; it must divide model.scratch.num_layers, {layers}.",
                "Choose a divisor of num_layers.",
                ("model.scratch.num_layers",),
            )


def _experts(config: Config) -> Iterator[Problem]:
    trainer = config.trainer
    replicas = trainer.data_parallel * trainer.context_parallel
    if replicas % trainer.expert_parallel:
        yield Problem(
            "trainer.expert_parallel",
            f"trainer.expert_parallel is {trainer.expert_parallel}; it must divide data_parallel * context_parallel, "
            f"{replicas}.",
            "Choose a divisor of it, or more data-parallel ranks.",
            ("trainer.data_parallel", "trainer.context_parallel"),
        )
    if trainer.expert_parallel > 1 and config.model.source == "scratch":
        yield Problem(
            "trainer.expert_parallel",
            f"trainer.expert_parallel is {trainer.expert_parallel}; model.source is scratch, which has no experts.",
            "Use 1.",
            ("model.source",),
        )


Check = Callable[[Config], Iterator[Problem]]

RULES: tuple[Check, ...] = (
    _steps,
    _model,
    _data,
    *check_rewards.RULES,
    _buffer,
    _archive,
    _checkpoint_store,
    _rollout,
    *check_deterministic.RULES,
    _parallel,
    *check_layouts.RULES,
    *check_rl.RULES,
)
