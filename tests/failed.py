"""Prints which tests to run once more after `pytest` failed: `pytest $(python -m tests.failed)`; nothing when none did.

Tests of tests/cluster stand on those before them in their file, tests/cluster/node on its earlier files too: alone they
could only fail again.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAST_FAILED = ROOT / ".pytest_cache/v/cache/lastfailed"
STORY = "tests/cluster/node"


def once_more(failed: Iterable[str]) -> list[str]:
    """What to run for these node ids, in their order, each once."""
    return list(dict.fromkeys(_whole(node_id) for node_id in failed))


def _whole(node_id: str) -> str:
    file = node_id.partition("::")[0]
    if file.startswith(f"{STORY}/"):
        return STORY
    return file if file.startswith("tests/cluster/") else node_id


if __name__ == "__main__":
    if LAST_FAILED.exists():
        sys.stdout.writelines(f"{one}\n" for one in once_more(json.loads(LAST_FAILED.read_text())))
