"""The repository as the tests in this folder see it: its root and the files that git knows."""

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = tuple(sorted(link.name for link in (ROOT / "src" / "crescendo").iterdir() if link.is_symlink()))
GENERATED = "proto/python/"


@cache
def tracked_files() -> tuple[str, ...]:
    """Paths, relative to the root, of files that git tracks and that are there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    names = [name for name in listed.split("\0") if name]
    return tuple(name for name in names if (ROOT / name).is_file())


def python_files() -> list[str]:
    """Tracked Python files that people write."""
    return [name for name in tracked_files() if name.endswith(".py") and not name.startswith(GENERATED)]


def text_of(name: str) -> str:
    """A tracked file's text; empty for a binary file."""
    try:
        return (ROOT / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
