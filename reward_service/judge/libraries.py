"""Packages that programs may import besides the standard library: pure Python, shipped with a program that names them.

The sandbox's runtime has the standard library only. A package is shipped if it is installed here; a program that
imports one which is not fails as it would on any judge without it.
"""

from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

SHIPPED = ("sortedcontainers",)


def library_files(source: str) -> dict[str, bytes]:
    """Files of the packages that a program's text names."""
    found: dict[str, bytes] = {}
    for name in SHIPPED:
        if name in source:
            found |= _files(name)
    return found


@lru_cache
def _files(name: str) -> Mapping[str, bytes]:
    spec = find_spec(name)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return {f"{name}/{path.name}": path.read_bytes() for folder in folders for path in Path(folder).glob("*.py")}
