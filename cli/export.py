"""`crescendo export`: a run's archive as a JSONL file that other trainers read.

The file appears whole: lines go to a file beside it, renamed at the end.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from crescendo.buffer.archive import archive_url
from crescendo.buffer.archive.reader import Archive
from crescendo.buffer.export import COLUMNS, EXAMPLES, Rules
from crescendo.cli.exits import Exit
from crescendo.cli.folders import find_run
from crescendo.common.config import load_resolved
from crescendo.common.errors import ConfigError, DataError, EnvironmentProblem

_NOTHING = {
    "sft": "no group of the archive has a correct answer",
    "dpo": "no group of the archive has both a correct answer and one to reject",
    "rollouts": "no trajectory of the archive was trained on in the surviving branch",
}
_LESS_STRICT = {
    "sft": "Train longer, raise --max-tokens, or look at the run with --format rollouts.",
    "dpo": "Try --rejected longer (or wrong), or look at the run with --format rollouts.",
    "rollouts": "Use --all to see dropped and abandoned trajectories too.",
}


def export(options: argparse.Namespace) -> int:
    """Writes the file; returns the exit code. Raises DataError when there is no archive, or nothing to export."""
    folder = find_run(options.run)
    out = Path(options.out)
    _check(options, out)
    archive = Archive.open(archive_url(load_resolved(folder.config), folder))
    rules = Rules(
        style=options.style, shortest=options.shortest, rejected=options.rejected,
        longer_factor=options.longer_factor, num_pairs=options.pairs, max_tokens=options.max_tokens,
    )  # fmt: skip
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with open(scratch, "w", encoding="utf-8") as file:
            count = 0
            for example in _examples(archive, options.format, rules, everything=options.all):
                file.write(json.dumps(example, ensure_ascii=False) + "\n")
                count += 1
        if not count:
            raise DataError(
                f"{_NOTHING[options.format]} ({archive.num_groups} groups).", fix=_LESS_STRICT[options.format]
            )
        os.replace(scratch, out)
    except OSError as error:
        raise EnvironmentProblem(f"{out} can't be written: {error.strerror}.", field="--out") from error
    finally:
        scratch.unlink(missing_ok=True)
    print(f"{count} {'examples' if options.format != 'rollouts' else 'trajectories'} in {out}")
    return Exit.DONE


def _check(options: argparse.Namespace, out: Path) -> None:
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"--out {out} is not a file in an existing folder.", field="--out", fix="Name a file.")
    if out.exists() and not options.force:
        raise ConfigError(f"--out {out} exists already.", field="--out", fix="Choose another name, or give --force.")
    for name, value, least in (("--pairs", options.pairs, 1), ("--max-tokens", options.max_tokens, 0),
                               ("--longer-factor", options.longer_factor, 1)):  # fmt: skip
        if value < least:
            raise ConfigError(
                f"{name} is {value}; it must be at least {least}.", field=name, fix=f"Give {least} or more."
            )


def _examples(archive: Archive, form: str, rules: Rules, *, everything: bool) -> Iterator[dict[str, Any]]:
    """Examples of all groups, with a progress bar where a person watches."""
    columns: Sequence[str] | None = None if form == "rollouts" else COLUMNS
    parts = (
        TextColumn("exporting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("groups, left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*parts, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=archive.num_groups)
        for group in archive.groups(columns):
            rows = [row for row in group.rows if everything or archive.survives(row)]
            if rows:
                yield from EXAMPLES[form](rows, rules)
            progress.advance(task)
