"""Named points at which a test may kill a process: each crash point of a commit, a rollback, a resumption.

Code calls `reach(name)` there. Nothing happens unless CRESCENDO_FAILPOINTS names the point; then the process
ends by SIGKILL, as it would by `kill -9` or by the kernel for want of memory: nothing is flushed, no handler runs.

    CRESCENDO_FAILPOINTS="commit.saved:2:/path/marker"      one or several, separated by commas

Each entry kills once, when the point is reached the nth time in one process, and only if its marker file is not
there yet. The marker is written first, with the facts that the caller gave: it tells that the point was reached,
and keeps the process that takes over from dying the same way.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

VARIABLE = "CRESCENDO_FAILPOINTS"

_counts: Counter[str] = Counter()


def reach(name: str, facts: Callable[[], Mapping[str, Any]] | None = None) -> None:
    """Ends the process if the environment says so; facts: what the marker file should remember, as JSON."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    _counts[name] += 1
    for entry in wanted.split(","):
        point, count, marker = entry.split(":", 2)
        if point == name and int(count) == _counts[name]:
            _die(Path(marker), facts() if facts is not None else {})


def _die(marker: Path, facts: Mapping[str, Any]) -> None:
    try:
        descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    os.write(descriptor, json.dumps({"pid": os.getpid(), **facts}).encode())
    os.close(descriptor)
    os.kill(os.getpid(), signal.SIGKILL)
