"""Files that are written from code: written anew, or with --check compared. Used by the commands that generate them."""

import sys
from collections.abc import Mapping
from pathlib import Path


def write_or_check(files: Mapping[Path, str], *, check: bool, command: str) -> int:
    """An exit code: 1 when check is set and a file differs from its text, which is told with the command to run."""
    stale = 0
    for target, text in files.items():
        if not check:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        elif not target.exists() or target.read_text(encoding="utf-8") != text:
            print(f"{target} is stale: run {command}", file=sys.stderr)
            stale = 1
    return stale
