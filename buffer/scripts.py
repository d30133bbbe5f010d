"""The Lua scripts: each change of the buffer is one of them, read from buffer/scripts/.

A script's file starts with `#!lua` and its flags, then a comment with its arguments and keys. The text of
prelude.lua (keys, the fence check) and prelude_records.lua (groups, samples, what follows from their changes) goes
between that line and the rest.
"""

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

_FOLDER = "scripts"
_PRELUDE = ("prelude", "prelude_records")


@dataclass(frozen=True)
class Script:
    """A script as it is sent to the server."""

    name: str
    text: str
    sha: str


@functools.cache
def script(name: str) -> Script:
    """The script of that file name, without `.lua`."""
    first, rest = _read(name).split("\n", 1)
    text = "\n".join((first, *map(_read, _PRELUDE), rest))
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def script_names() -> list[str]:
    """Names of all scripts, sorted."""
    files = resources.files(__package__).joinpath(_FOLDER).iterdir()
    names = sorted(file.name.removesuffix(".lua") for file in files if file.name.endswith(".lua"))
    return [name for name in names if name not in _PRELUDE]


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(_FOLDER, f"{name}.lua").read_text(encoding="utf-8")
