"""How long it took to build from nothing what the cache holds: noted by who builds, read by the node tests' stop-watch.

`.ci/run` builds ahead, beside other tests; a stop-watch that starts later would show none of it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

NAME: Final = "seconds.jsonl"


@contextmanager
def noted_as(cache: Path, step: str, *, unless: bool = False) -> Iterator[None]:
    """Notes what the body took, when it ends well. unless: what it builds was there."""
    begun = time.monotonic()
    yield
    if not unless:
        with (cache / NAME).open("a") as lines:  # one write, which others' writes do not split
            lines.write(json.dumps([step, round(time.monotonic() - begun, 1)]) + "\n")


def noted(cache: Path) -> dict[str, float]:
    """Seconds by step, all parts of a step together; none of what was built before they were noted."""
    found: dict[str, float] = {}
    if (cache / NAME).exists():
        for line in (cache / NAME).read_text().splitlines():
            step, seconds = json.loads(line)
            found[step] = round(found.get(step, 0.0) + seconds, 1)
    return found
