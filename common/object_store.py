"""Files of a run below a URL: an S3 bucket, a folder, or what else fsspec opens.

    put     a local file -> an object, hashed on the way; its size is asked for afterwards
    get     an object -> a local file: ranges side by side into a scratch file, hashed, then renamed
    write, read, names, remove    for small objects, and for what is no longer needed

An upload that is cut off may leave an object, shorter or none: nothing here makes an object count. Whoever names
objects never uses a name twice for other content, and reads only what a manifest lists with size and digest.

Used by the trainer (checkpoints) and the controller (manifests, what workers need). Blocking: asyncio code calls it in
a thread. Every request has a time limit, and every call one for all of it. Nothing has to be closed.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import fsspec
import xxhash
from fsspec.implementations.local import LocalFileSystem

from crescendo.common import failpoints
from crescendo.common.errors import (
    CheckpointError,
    ConfigError,
    CrescendoError,
    DeadlineError,
    DiskFullError,
    StoreUnavailableError,
)
from crescendo.common.runfolder import sync, write_atomically
from crescendo.common.s3 import ANSWER_S, ATTEMPTS, CONNECT_S, DENIED, NO_BUCKET, s3_filesystem

FIELD: Final = "checkpoint_store.url"
# Where people write it: in a run file, or in an RLJob, from which the operator makes one.
URL: Final = "checkpoint_store.url (RLJob: spec.storage.checkpoints.uri)"
KEYS: Final = "checkpoint_store.credentials (RLJob: the Secret of spec.storage.checkpoints.secretRef)"
PORTS: Final = "the ways out of the network (RLJob: spec.network.egressPorts)"
CHUNK_BYTES: Final = 4 * 2**20
RANGE_BYTES: Final = 16 * 2**20
PARALLEL: Final = 8
LIMIT_S: Final = 1800.0


class ObjectStore:
    """What lies below one URL.

    credentials: a folder with a file a setting (AWS_ACCESS_KEY_ID, ...), as a Secret is mounted, read at each opening;
    empty: the environment. limit_s: for one call; beat: called for every piece that got through, in any thread;
    threads: False uploads in the caller's thread alone.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: str = "",
        limit_s: float = LIMIT_S,
        beat: Callable[[], None] = lambda: None,
        connect_s: float = CONNECT_S,
        answer_s: float = ANSWER_S,
        attempts: int = ATTEMPTS,
        threads: bool = True,
    ) -> None:
        """Raises ConfigError for a URL or credentials that cannot be; talks to nobody yet."""
        self.url = url.rstrip("/")
        self._limit_s = limit_s
        self._beat = beat
        protocol, is_url, rest = self.url.partition("://")
        if is_url and protocol == "s3":
            settings = _settings(credentials)
            self._fs: Any = s3_filesystem(
                settings, anonymous=False, connect_s=connect_s, answer_s=answer_s, attempts=attempts, threads=threads
            )
            self._root = rest
        else:
            self._fs, self._root = _opened(self.url)
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def put(self, path: Path, name: str) -> int:
        """Uploads a file; returns its xxh3-64 digest. Raises StoreUnavailableError, DeadlineError, ConfigError."""
        deadline, state = self._deadline(), xxhash.xxh3_64()
        with self._explained(name):
            with path.open("rb") as here, self._fs.open(self._at(name), "wb") as there:
                while chunk := here.read(CHUNK_BYTES):
                    there.write(chunk)
                    state.update(chunk)
                    failpoints.reach("store.uploading")
                    self._advance(name, deadline)
            if self._is_local:
                path_there = Path(self._at(name))
                sync(path_there, path_there.parent)
        stored, wanted = self.size(name), path.stat().st_size
        if stored != wanted:
            raise StoreUnavailableError(
                f"{self.url}/{name} has {stored} bytes after an upload of {wanted}.",
                field=FIELD,
                fix="It is tried again.",
            )
        return int(state.intdigest())

    def get(self, name: str, target: Path, num_bytes: int, digest: int) -> None:
        """Downloads an object to a file that appears whole or not at all.

        Raises CheckpointError when it is missing or not what it should be; the errors of `put` besides.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with self._explained(name):
                self._fetch_ranges(name, scratch, num_bytes)
            found = file_digest(scratch)
            if found != digest:
                raise CheckpointError(
                    f"{self.url}/{name} has digest {found:016x}; its manifest says {digest:016x}.",
                    fix="The object is damaged: restore it from a version of the bucket, or resume from an older one.",
                )
            scratch.replace(target)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.url}/{name} is missing.", fix="Restore it, or move its commit's manifest away."
            ) from error
        finally:
            scratch.unlink(missing_ok=True)

    def _fetch_ranges(self, name: str, scratch: Path, num_bytes: int) -> None:
        deadline, at = self._deadline(), self._at(name)
        stored = int(self._fs.info(at)["size"])
        if stored != num_bytes:
            raise CheckpointError(
                f"{self.url}/{name} has {stored} bytes; its manifest says {num_bytes}.",
                fix="The object is damaged: restore it from a version of the bucket, or resume from an older one.",
            )
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

        def fetch(start: int) -> None:
            stop = min(start + RANGE_BYTES, num_bytes)
            with self._fs.open(at, "rb") as there:
                there.seek(start)
                data = there.read(stop - start)
            if len(data) != stop - start:
                raise OSError(f"{len(data)} of {stop - start} bytes came")
            self._advance(name, deadline)
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], start + written)

        try:
            with ThreadPoolExecutor(PARALLEL, "store") as pool:
                jobs = [pool.submit(fetch, start) for start in range(0, num_bytes, RANGE_BYTES)]
                try:
                    for job in as_completed(jobs):
                        job.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def write(self, name: str, data: bytes) -> None:
        """Puts a small object in place, whole."""
        with self._explained(name):
            if self._is_local:
                path = Path(self._at(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, data.decode())
            else:
                self._fs.pipe_file(self._at(name), data)

    def read(self, name: str) -> bytes | None:
        """A small object; None when there is none."""
        try:
            with self._explained(name):
                return bytes(self._fs.cat_file(self._at(name)))
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int:
        """Bytes of an object; -1 when there is none."""
        try:
            with self._explained(name):
                return int(self._fs.info(self._at(name))["size"])
        except FileNotFoundError:
            return -1

    def names(self, below: str) -> list[str]:
        """What lies directly below a name, sorted."""
        try:
            with self._explained(below):
                self._fs.invalidate_cache()
                paths = self._fs.ls(self._at(below), detail=False)
        except FileNotFoundError:
            return []
        found = (str(path).rstrip("/").rpartition("/")[2] for path in paths)
        return sorted(name for name in found if name and not name.startswith("."))

    def remove(self, name: str) -> None:
        """Deletes an object, or everything below a name; fine when there is nothing."""
        try:
            with self._explained(name):
                self._fs.rm(self._at(name), recursive=True)
        except FileNotFoundError:
            return

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _deadline(self) -> float:
        return time.monotonic() + self._limit_s

    def _advance(self, name: str, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"{self.url}/{name} was not transferred within {self._limit_s:.0f} s.",
                field="deadlines.checkpoint_s",
                fix="Raise the deadline, or see why the store is slow.",
            )
        self._beat()

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turns what a file system raises into an error that says what to do; FileNotFoundError passes."""
        try:
            yield
        except (CrescendoError, TypeError, AttributeError, NameError):
            raise  # told already, or a bug of ours
        except Exception as error:
            text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            place = f"{self.url}/{name}"
            if any(sign in text for sign in NO_BUCKET):
                text = f"{FIELD} is {self.url!r}: there is no such bucket."
                raise ConfigError(text, field=FIELD, fix=f"Make it, or correct {URL}.") from error
            if isinstance(error, FileNotFoundError):
                raise
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(f"no room to transfer {place}: {error.strerror}.", fix="Free space.") from error
            if isinstance(error, PermissionError) or any(sign in text for sign in DENIED):
                raise ConfigError(
                    f"{place} is refused ({text}).",
                    field=FIELD,
                    fix=f"Give a key in {KEYS} that may list, read, write and delete below the URL.",
                ) from error
            raise StoreUnavailableError(
                f"the checkpoint store did not answer well for {place} ({text}).",
                field=FIELD,
                fix=f"It is tried again. If it stays, check the endpoint, {PORTS} and the store.",
            ) from error


def file_digest(path: Path) -> int:
    """xxh3-64 of a file's bytes."""
    state = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
    return int(state.intdigest())


def _settings(credentials: str) -> dict[str, str]:
    """The environment, or the files of a folder instead."""
    if not credentials:
        return dict(os.environ)
    try:
        found = {path.name: path.read_text().strip() for path in Path(credentials).glob("AWS_*")}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"checkpoint_store.credentials is {credentials!r}, which cannot be read: {error}.",
            field="checkpoint_store.credentials",
            fix="Name a folder with the files AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        ) from error
    if not found:
        raise ConfigError(
            f"checkpoint_store.credentials is {credentials!r}, where no file is named AWS_....",
            field="checkpoint_store.credentials",
            fix=f"Put AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into {KEYS}.",
        )
    return found


def _opened(url: str) -> tuple[Any, str]:
    local = {"auto_mkdir": True} if "://" not in url or url.startswith("file://") else {}
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **local)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"{FIELD} is {url!r}, which cannot be opened: {error}",
            field=FIELD,
            fix="Give s3://bucket/path or a folder, or install the package (gcsfs, adlfs, ...) that fsspec asks for.",
        ) from None
    return filesystem, str(root).rstrip("/")
