"""The policy that a run starts from, as a Hugging Face folder in the run folder: made, linked or fetched."""

import os
from dataclasses import replace
from pathlib import Path

from crescendo.common.config.schema import Config
from crescendo.common.errors import ConfigError, EnvironmentProblem
from crescendo.common.models.scratch import write_scratch_model
from crescendo.common.planner import refuse_early
from crescendo.common.runfolder import RunFolder

NEEDED = ("config.json", "tokenizer.json")


def prepare_policy(config: Config, folder: RunFolder) -> Path:
    """Makes folder.model hold the policy; does nothing when it does already.

    Raises ConfigError for a folder without a model, and for a model of the hub that does not fit this machine;
    EnvironmentProblem when the hub cannot be reached.
    """
    if (folder.model / "config.json").exists():
        return folder.model
    source = config.model.source
    if source == "scratch":
        write_scratch_model(folder.model, config.model.scratch, config.run.seed)
    elif Path(source).is_dir():
        _link(Path(source), folder.model)
    elif source.startswith((".", "/")) or source.count("/") != 1:
        raise ConfigError(
            f"model.source is {source!r}: there is no such folder.",
            field="model.source",
            fix="Give `scratch`, an existing folder in Hugging Face format, or a hub name such as owner/model.",
        )
    else:
        _link(_fetch(source, config.model.revision), folder.model)
        refuse_early(replace(config, model=replace(config.model, source=str(folder.model))))
    return folder.model


def _link(source: Path, target: Path) -> None:
    missing = [name for name in NEEDED if not (source / name).exists()]
    if missing:
        raise ConfigError(
            f"model.source {source} lacks {' and '.join(missing)}.",
            field="model.source",
            fix="Give a folder in Hugging Face format; `crescendo model convert` makes one from a GGUF file.",
        )
    if target.is_symlink():
        target.unlink()
    os.symlink(source.resolve(), target, target_is_directory=True)


def _fetch(name: str, revision: str) -> Path:
    # Only here, and only for a hub name: the package is slow to import.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer*"]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"model.source {name!r} is neither a folder nor a model on the hub.", field="model.source"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise EnvironmentProblem(
            f"the hub did not answer for model {name!r}: {error}",
            field="model.source",
            fix="Fetch the model where there is a network and give its folder.",
        ) from error
