"""From a run file to a `Config`: read, `--set`, merge into the schema, check.

`crescendo run` calls `load_config` once and writes the result beside the run with `save_resolved`; every
process then reads that file with `load_resolved`. Nothing here changes a value that the author gave, except
that relative paths of input files become absolute (they are relative to the working directory), so that a
run can be resumed from anywhere.
"""

import dataclasses
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crescendo.common.config.check import check, check_inputs, data_sources
from crescendo.common.config.problems import Problem, raise_if_any, without_consequences
from crescendo.common.config.schema import Config
from crescendo.common.config.tree import conform, field_name, field_types
from crescendo.common.errors import ConfigError
from crescendo.common.runfolder import write_atomically

MAX_FILE_BYTES = 1 << 20
_HEADER = "# The run's configuration, resolved. Written by Crescendo; every process of the run reads it.\n"
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def load_config(path: Path, overrides: Sequence[str] = (), *, inputs: bool = True) -> Config:
    """Reads a run file, applies `key=value` overrides in order, checks everything.

    inputs: whether the files that it names must be here.
    Raises ConfigError naming every problem with field, value, rule and fix.
    """
    problems: list[Problem] = []
    raw = read_mapping(path)
    for override in overrides:
        _apply(raw, override, problems)
    config = _merge(raw, str(path), problems)
    _make_paths_absolute(config)
    problems = without_consequences(problems, check(config))
    raise_if_any(str(path), without_consequences(problems, check_inputs(config) if inputs else ()))
    return config


def check_mapping(raw: dict[str, Any], source: str) -> Config:
    """A run given as a mapping instead of a file, checked but for whether its input files are here.

    source: what errors call it. Raises ConfigError.
    """
    problems: list[Problem] = []
    config = _merge(raw, source, problems)
    raise_if_any(source, without_consequences(problems, check(config)))
    return config


def load_resolved(path: Path) -> Config:
    """Reads the file that `save_resolved` wrote; raises ConfigError when somebody broke it."""
    problems: list[Problem] = []
    config = _merge(read_mapping(path), str(path), problems)
    raise_if_any(str(path), without_consequences(problems, check(config)))
    return config


def save_resolved(config: Config, path: Path) -> None:
    """Writes every field, defaults too."""
    write_atomically(path, _HEADER + to_yaml(config))


def to_yaml(config: Config) -> str:
    """Every field as YAML, in the schema's order."""
    return str(yaml.safe_dump(_escape(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True, width=110))


def read_mapping(path: Path) -> dict[str, Any]:
    """The file as it stands, unchecked; raises ConfigError when it is no YAML mapping."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(
                f"{path} has more than {MAX_FILE_BYTES} bytes; a run file is small.", fix="Give a recipe."
            )
        # OmegaConf's loader reads 1e-6 as a number and refuses duplicate keys, which YAML 1.1 does not.
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.", fix="Give the path of a run file, such as a recipe.") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", fix="Give the path of a run file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}.", fix="Give a run file in YAML.") from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        # OmegaConf.load raises a bare OSError for a document that is a scalar.
        raise ConfigError(f"{path} is not a YAML mapping: {error}", fix="Correct the line that it names.") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} is a list; a run file is a mapping.", fix="Start with run:, model:, data:, ...")
    return typing.cast(dict[str, Any], loaded)


def _merge(raw: dict[str, Any], source: str, problems: list[Problem]) -> Config:
    tree = conform(raw, Config, "", problems)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), tree)
        return typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        field = str(getattr(error, "full_key", "") or "")
        reason = str(error).splitlines()[0]
        unresolved = Problem(field, f"{field}: {reason}.", "Give a plain value, or ${section.field} of one.")
        raise_if_any(source, [*problems, unresolved])
        raise AssertionError("unreachable: there is a problem") from error


def _apply(raw: dict[str, Any], override: str, problems: list[Problem]) -> None:
    """Sets one `key=value` in the raw tree; steps of the key are names or list positions."""
    key, equals, text = override.partition("=")
    steps = [name or int(index) for name, index in _STEP.findall(key.strip())]
    if not equals or not steps:
        problems.append(Problem(key, f"--set {override}: it must have the form key=value.", "Write --set run.seed=1"))
        return
    kind = _type_at(steps)
    value = text if kind is str else _parse(text)
    if not _place(raw, steps, Config, value):
        problems.append(
            Problem(
                key,
                f"--set {override}: {key} leads through something that is not there or has no fields.",
                "Name list items by position, from 0, as in steps.1.rl.stages.0.max_response_tokens=64.",
            )
        )


def _type_at(steps: Sequence[str | int]) -> Any:
    """The schema's type where the steps lead; None outside the schema."""
    kind: Any = Config
    for step in steps:
        origin = typing.get_origin(kind)
        if dataclasses.is_dataclass(kind):
            name = field_name(typing.cast(type, kind), str(step))
            kind = field_types(typing.cast(type, kind))[name] if name else None
        elif origin in (list, dict):
            kind = typing.get_args(kind)[-1]
        else:
            return None
    return kind


def _parse(text: str) -> Any:
    """A value as YAML reads it, in OmegaConf's dialect."""
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]  # type: ignore[index, call-overload]
    except (yaml.YAMLError, OmegaConfBaseException):
        return text


def _place(node: Any, steps: Sequence[str | int], kind: Any, value: Any) -> bool:
    """Puts the value at the end of the steps, making sections on the way; False if it can't."""
    for position, step in enumerate(steps):
        last = position == len(steps) - 1
        if isinstance(node, list):
            text = str(step)
            if not text.isdecimal() or int(text) > len(node):
                return False
            index = int(text)
            if index == len(node):
                node.append({})
            if last:
                node[index] = value
            node = node[index]
        elif isinstance(node, dict):
            here = _type_at(steps[:position]) if position else kind
            name = _existing_key(node, here, str(step))
            if last:
                node[name] = value
            else:
                below = _type_at(steps[: position + 1])
                node = node.setdefault(name, [] if typing.get_origin(below) is list else {})
        else:
            return False
    return True


def _existing_key(node: dict[str, Any], kind: Any, key: str) -> str:
    """The spelling that the tree already uses for a key, so that an override replaces it."""
    name = field_name(typing.cast(type, kind), key) if dataclasses.is_dataclass(kind) else None
    if name is None:
        return key
    return next((k for k in node if field_name(typing.cast(type, kind), str(k)) == name), name)


def _make_paths_absolute(config: Config) -> None:
    for _, source in data_sources(config):
        if source.name in ("jsonl", "parquet") and source.path and "://" not in source.path:
            source.path = str(Path(source.path).expanduser().absolute())
    for judge in config.rewards.models.values():
        for name in ("api_key_file", "ca_file"):
            if given := getattr(judge, name):
                setattr(judge, name, str(Path(given).expanduser().absolute()))
    if config.archive.url and "://" not in config.archive.url:
        config.archive.url = str(Path(config.archive.url).expanduser().absolute())
    model = Path(config.model.source).expanduser()
    if config.model.source not in ("", "scratch") and model.is_dir():
        config.model.source = str(model.absolute())


def _escape(value: Any) -> Any:
    """Keeps literal `${` from being read as a reference."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, list):
        return [_escape(item) for item in value]
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    return value
