"""Prints which tests to run once more after `pytest` failed: `pytest $(python -m tests.failed)`; nothing when none did.

Tests of tests/cluster stand on those before them in their file, some of tests/cluster/node on another file too: alone
they could only fail again.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAST_FAILED = ROOT / ".pytest_cache/v/cache/lastfailed"
CLUSTER = "tests/cluster/"
NEEDS = {  # the job that the console shows, and that outlives the chart
    f"{CLUSTER}node/{name}.py": (f"{CLUSTER}node/test_short_jobs.py",) for name in ("test_console", "test_uninstall")
}


def once_more(failed: Iterable[str]) -> list[str]:
    """What to run for these node ids, each once, and what it needs before it."""
    return list(dict.fromkeys(one for node_id in failed for one in _with_needs(node_id)))


def _with_needs(node_id: str) -> tuple[str, ...]:
    file = node_id.partition("::")[0]
    return (*NEEDS.get(file, ()), file) if file.startswith(CLUSTER) else (node_id,)


if __name__ == "__main__":
    if LAST_FAILED.exists():
        sys.stdout.writelines(f"{one}\n" for one in once_more(json.loads(LAST_FAILED.read_text())))
