"""`python leave_out.py PATTERN FILE`: takes packages whose whole name matches out of a file of pins, for build.sh."""

import re
import sys
from pathlib import Path


def without(pattern: str, pins: str) -> str:
    """The pins, less those packages and their hashes."""
    entries = re.split(r"^(?=\S)", pins, flags=re.M)
    names = re.compile(rf"(?:{pattern})(?:\[[^]]*\])?==.*", re.S)
    return "".join(entry for entry in entries if not names.fullmatch(entry))


if __name__ == "__main__":
    path = Path(sys.argv[2])
    path.write_text(without(sys.argv[1], path.read_text()))
