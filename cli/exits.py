"""Exit codes of the command, and how an error ends it."""

import sys
from enum import IntEnum

from rich.console import Console
from rich.text import Text

from crescendo.common.errors import TEMPORARY, CrescendoError


class Exit(IntEnum):
    """What the command's exit code means; `crescendo --help` prints it."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    ENVIRONMENT = 3
    TEMPORARY = TEMPORARY
    INTERRUPTED = 130


def describe() -> str:
    """The exit codes as --help shows them."""
    return (
        "exit codes:\n"
        "  0    done\n"
        "  1    the run failed\n"
        "  2    bad input: arguments, run file, data or run folder\n"
        "  3    the machine lacks something: see `crescendo doctor`\n"
        "  75   the run lost what it needs, or was killed: resume it (`--restarts N` does so by itself)\n"
        "  130  interrupted, or stopped by `crescendo stop`; the run can be resumed\n"
    )


def show_error(error: CrescendoError) -> int:
    """Prints an error with its fix to stderr; returns the exit code."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), error.message))
    if error.fix:
        console.print(Text.assemble(("fix: ", "bold"), error.fix))
    sys.stderr.flush()
    return error.exit_code
