"""The last steps before candidate code, and the code itself: limits, standard streams, `__main__`.

Called in a process that is already jailed; `run` never returns. The candidate starts as `python main.py` would start
it, except that modules which the zygote had imported are loaded already.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import resource
import sys
import time
from math import ceil

from crescendo.reward_service.sandbox.inside.wire import Start

TYPE_CHECKING = False  # a cold interpreter starts faster without `typing` and `collections`
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType
    from typing import NoReturn

MAX_DESCRIPTORS = 64
MAX_PENDING_SIGNALS = 64
OURS = "crescendo"
FIXED_ENVIRONMENT = {"PATH": "/nonexistent", "HOME": "/nonexistent", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


def apply_limits(start: Start, address_space_bytes: int, *, counts_processes: bool) -> None:
    """Lowers this process's resource limits for good.

    address_space_bytes: what the interpreter has mapped already; counts_processes: whether the kernel counts this
    run's processes apart from others of the same user (it does in a user namespace of its own).
    """
    limits = [
        (resource.RLIMIT_AS, address_space_bytes + start.memory_bytes),
        (resource.RLIMIT_CPU, start.cpu_s + ceil(time.process_time() - 0.1)),
        (resource.RLIMIT_FSIZE, start.file_bytes),
        (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ]
    if counts_processes:
        limits.append((resource.RLIMIT_NPROC, start.num_processes))
    for limit, value in limits:
        _lower(limit, value)
    try:
        _lower(resource.RLIMIT_SIGPENDING, MAX_PENDING_SIGNALS)
        for limit in (resource.RLIMIT_MSGQUEUE, resource.RLIMIT_NICE, resource.RLIMIT_RTPRIO):
            _lower(limit, 0)
    except ValueError:
        pass  # gVisor has none of these four, nor what they limit


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def write_files(contents: Mapping[str, bytes]) -> None:
    """Puts the program's files into the working folder, which is empty. Names were checked by Program.check."""
    for name, data in contents.items():
        if "/" in name:
            os.makedirs(os.path.dirname(name), exist_ok=True)
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            file.write(data)


def run(start: Start, source: bytes, folder: str) -> NoReturn:
    """Runs the candidate as `__main__` and ends the process as the interpreter would."""
    os.environ.clear()
    os.environ.update(FIXED_ENVIRONMENT | start.environment)
    sys.argv = [start.entry, *start.arguments]
    sys.path.insert(0, folder)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = _writer(1)
    sys.stderr = _writer(2, errors="backslashreplace", line_buffering=True)
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    if "random" in sys.modules:
        sys.modules["random"].seed()  # a cold interpreter has not imported it
    for name in [name for name in sys.modules if name.partition(".")[0] == OURS]:
        del sys.modules[name]
    main = type(sys)("__main__")
    main.__dict__.update(__file__=os.path.join(folder, start.entry), __builtins__=__builtins__)
    sys.modules["__main__"] = main
    gc.enable()
    status = _status_of(source, main)
    os._exit(_finish(status))


def _writer(descriptor: int, errors: str = "surrogateescape", *, line_buffering: bool = False) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", errors, line_buffering=line_buffering)


def _status_of(source: bytes, main: ModuleType) -> int:
    """The exit status that the interpreter would give this program."""
    try:
        exec(compile(source, main.__dict__["__file__"], "exec", dont_inherit=True), main.__dict__)  # noqa: S102
    except SystemExit as end:
        return _status_of_exit(end)
    except BaseException as error:  # noqa: BLE001 - a program may raise anything; the interpreter prints it, so do we
        import traceback

        first = error.__traceback__.tb_next if error.__traceback__ else None  # without our own frame
        traceback.print_exception(type(error), error, first)
        return 1
    return 0


def _status_of_exit(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _finish(status: int) -> int:
    """What the interpreter does at its end: waits for threads, runs exit handlers, flushes."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - the candidate's own handlers and streams; CPython exits with 120 too
        return status or 120
    return status
