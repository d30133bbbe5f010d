"""`crescendo fetch`: brings a model or a data set into a folder; the first step of a run on a cluster."""

import argparse
from pathlib import Path

from crescendo.cli.exits import Exit, show_error
from crescendo.common.errors import ConfigError, CrescendoError
from crescendo.controller.fetch import Kind, fetch, parse


def bring(options: argparse.Namespace) -> int:
    """Fetches; what may pass by itself ends with the exit code for that, so that it is tried again."""
    if options.deadline <= 0:
        raise ConfigError(
            f"--deadline is {options.deadline}; it must be positive.", field="--deadline", fix="Raise it."
        )
    kind, field = Kind(options.kind), options.field or "URI"
    try:
        source = parse(options.uri, kind, field=field)
        files = fetch(
            source, Path(options.target), kind, field=field, deadline_s=options.deadline,
            say=lambda line: print(line, flush=True),
        )  # fmt: skip
    except CrescendoError as error:
        code = show_error(error)
        return Exit.TEMPORARY if error.retryable else code
    print(files)
    return Exit.DONE
