"""The files that an interpreter needs to run on its own: found out by running it once. For jails that start it anew."""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import crescendo
from crescendo.common.errors import WorkerStartError
from crescendo.reward_service.sandbox.profiles import COMMON_IMPORTS

_ASK_S = 20.0
PACKAGE_FOLDER = "/sandbox"  # where the jail finds our own `inside`
INSIDE = f"{PACKAGE_FOLDER}/crescendo/reward_service/sandbox/inside"
_ASK = """
import importlib, json, os, sys
for name in sys.argv[1].split(","): importlib.import_module(name)
with open("/proc/self/maps") as file: mapped = {line.split(None, 5)[5].strip() for line in file if "/" in line}
print(json.dumps([os.path.dirname(os.__file__), sorted(mapped)]))
"""


@dataclass(frozen=True)
class Runtime:
    """interpreter: its path; folders: library folders to show; masked: folders in them to hide; files: name in the
    jail to file here, for the interpreter, shared libraries and the loader."""

    interpreter: str
    folders: tuple[str, ...]
    masked: tuple[str, ...]
    files: dict[str, str]

    @classmethod
    async def of(cls, interpreter: str) -> "Runtime":
        """Asks an interpreter; raises WorkerStartError if it does not answer."""
        command = [interpreter, "-I", "-S", "-c", _ASK, ",".join(COMMON_IMPORTS)]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env={})
        try:
            answer, _ = await asyncio.wait_for(process.communicate(), _ASK_S)
            library, mapped = json.loads(answer)
        except (TimeoutError, ValueError):
            raise WorkerStartError(f"{interpreter} does not run as an interpreter.") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return _runtime(interpreter, library, mapped)


def _runtime(interpreter: str, library: str, mapped: Sequence[str]) -> Runtime:
    library, interpreter = os.path.realpath(library), os.path.realpath(interpreter)
    masked = [path for name in ("site-packages", "dist-packages") if os.path.isdir(path := f"{library}/{name}")]
    files = {name: name for name in (interpreter, _loader(interpreter))}
    for path in mapped:
        if ".so" in path and not path.startswith(library) and os.path.realpath(_loader(interpreter)) != path:
            files |= {name: os.path.realpath(path) for name in _names_of(path)}
    return Runtime(interpreter, (library,), tuple(masked), files)


def package_file() -> str:
    """The folder `inside` here; the package above it is rebuilt empty in the jail."""
    return str(Path(crescendo.__file__).parent / "reward_service" / "sandbox" / "inside")


def _names_of(path: str) -> list[str]:
    """Names by which programs ask for a shared library: libz.so.1, where the file is libz.so.1.2.13."""
    stem = Path(path).name.partition(".so")[0]
    links = [name for name in Path(path).parent.glob(f"{stem}.so.*") if name.is_symlink()]
    return [str(link) for link in links if os.path.realpath(link) == os.path.realpath(path)] or [path]


def _loader(interpreter: str) -> str:
    """The dynamic loader's path as the interpreter names it (ELF's PT_INTERP)."""
    with open(interpreter, "rb") as file:
        head = file.read(4096)
    start = head.index(b"/lib")
    return head[start : head.index(b"\0", start)].decode()
