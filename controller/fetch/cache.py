"""Brings a source into a folder: whole or not at all, once.

    TARGET.partial-<id of the URI>/incoming/...    each file written, hashed, synced, renamed
    TARGET.partial-<id of the URI>/files/...
    TARGET.partial-<id of the URI>/fetched.json
    rename -> TARGET                            files and marker appear together

A target whose marker names the same URI and whose files have the sizes it lists is complete: nothing is fetched, since
a run must not change its model when it resumes. A fetch that was cut off goes on with the files that it has; two at
once do each other no harm. Progress is printed; the deadline holds for all of it.
"""

import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Final

from crescendo.common.errors import ConfigError, DeadlineError, DiskFullError
from crescendo.controller.fetch.remote import explained, nothing_there, open_source
from crescendo.controller.fetch.uri import Kind, Source

FILES: Final = "files"
MARKER: Final = "fetched.json"
INCOMING: Final = "incoming"
CHUNK_BYTES: Final = 4 * 2**20
PARALLEL: Final = 4
SHOW_EVERY_S: Final = 5.0
PATTERNS: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.MODEL: ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer*"),
    Kind.DATASET: ("*.jsonl", "*.jsonl.*", "*.json", "*.parquet"),
}
NEEDED: Final[Mapping[Kind, tuple[str, ...]]] = {Kind.MODEL: ("config.json", "tokenizer.json"), Kind.DATASET: ()}
Say = Callable[[str], None]


@dataclass(frozen=True)
class _File:
    """A file to fetch. remote: path in the source; digest: sha256 that the source promises, empty: none."""

    name: str
    remote: str
    num_bytes: int
    digest: str


@dataclass
class _Progress:
    """Bytes done, shared by the threads that copy. deadline: time.monotonic()."""

    what: str
    total: int
    deadline: float
    limit_s: float
    say: Say
    done: int = 0
    begun: float = field(default_factory=time.monotonic)
    _shown: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, num_bytes: int) -> None:
        """Counts, shows now and then; raises DeadlineError when the time is over."""
        now = time.monotonic()
        if now > self.deadline:
            raise DeadlineError(
                f"{self.what} was not fetched within {self.limit_s:.0f} s: "
                f"{_size(self.done)} of {_size(self.total)} are there.",
                field=self.what,
                fix="The next try goes on with what is there; raise the deadline for slow sources.",
            )
        with self._lock:
            self.done += num_bytes
            if now - self._shown >= SHOW_EVERY_S:
                self._shown = now
                self.say(self._line(now))

    def _line(self, now: float) -> str:
        rate = self.done / max(now - self.begun, 1e-6)
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate else ""
        return f"{self.what}: {_size(self.done)} of {_size(self.total)}, {_size(rate)}/s{left}"


def fetch(
    source: Source, target: Path, kind: Kind, *, field: str = "URI", deadline_s: float = 1800.0, say: Say = print
) -> Path:
    """Fills the target and returns its folder of files.

    field: what errors name. Raises ConfigError for what is not there or not allowed, SourceUnavailable, DeadlineError
    and DiskFullError (all retryable) for what may pass.
    """
    deadline = time.monotonic() + deadline_s
    if _is_complete(target, source):
        say(f"{field}: {source.uri} is in the cache")
        return target / FILES
    with explained(source, field):
        filesystem, root = open_source(source, field)
        found = _listing(filesystem, root, source, kind, field)
    total = sum(one.num_bytes for one in found)
    say(f"{field}: {len(found)} files, {_size(total)}, from {source.uri}")
    partial = target.with_name(f"{target.name}.partial-{hashlib.sha256(source.uri.encode()).hexdigest()[:12]}")
    (partial / FILES).mkdir(parents=True, exist_ok=True)
    _check_room(partial, total, field)
    progress = _Progress(field, total, deadline, deadline_s, say)
    with explained(source, field):
        digests = _copy_all(filesystem, found, partial / FILES, progress)
    _write_marker(partial, source, found, digests)
    _publish(partial, target, source)
    say(f"{field}: done, {_size(total)} in {time.monotonic() - progress.begun:.1f} s")
    return target / FILES


def _is_complete(target: Path, source: Source) -> bool:
    try:
        marker = json.loads((target / MARKER).read_text(encoding="utf-8"))
        sizes = {name: entry["bytes"] for name, entry in marker["files"].items()}
        same = marker["uri"] == source.uri
        return same and all((target / FILES / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # no marker, or a damaged one: fetched anew


def _listing(filesystem: Any, root: str, source: Source, kind: Kind, field: str) -> list[_File]:
    """The files of a source that belong to its kind."""
    root = root.rstrip("/")
    if any(mark in root for mark in "*?["):
        infos = {name: info for name, info in filesystem.glob(root, detail=True).items() if info["type"] == "file"}
        base = root[: min(root.index(mark) for mark in "*?[" if mark in root)].rpartition("/")[0]
    elif (info := filesystem.info(root))["type"] == "file":
        infos, base = {root: info}, root.rpartition("/")[0]
    else:
        # To fsspec's own walk an error is an empty folder by default; the hub's always raises.
        loud = {} if source.scheme == "hf" else {"on_error": "raise"}
        infos, base = filesystem.find(root, detail=True, **loud), info["name"]
    if not infos:
        raise nothing_there(source, field)
    found = []
    for remote, info in sorted(infos.items()):
        name = remote[len(base) :].lstrip("/")
        if not any(fnmatch(name, pattern) for pattern in PATTERNS[kind]) or _is_hidden(name):
            continue
        if ".." in PurePosixPath(name).parts:
            raise ConfigError(f"{field}: {source.uri} holds a file named {name!r}.", field=field, fix="Rename it.")
        digest = str((info.get("lfs") or {}).get("sha256", ""))
        found.append(_File(name, remote, int(info["size"] or 0), digest))
    _check_content(found, source, kind, field)
    return found


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _check_content(found: Iterable[_File], source: Source, kind: Kind, field: str) -> None:
    names = {one.name for one in found}
    missing = [name for name in NEEDED[kind] if name not in names]
    if missing or not names:
        what = f"it lacks {' and '.join(missing)}" if missing else f"it has none of {', '.join(PATTERNS[kind])}"
        fix = "Name a folder in Hugging Face format." if kind is Kind.MODEL else "Name JSON lines or Parquet files."
        raise ConfigError(f"{field} is {source.uri!r}: {what}.", field=field, fix=fix)


def _check_room(folder: Path, total: int, field: str) -> None:
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if free < total - there:
        raise DiskFullError(
            f"{field} needs {_size(total - there)}, the volume has {_size(free)} free.",
            field=field,
            fix="Raise spec.storage.size, or make room.",
        )


def _copy_all(filesystem: Any, found: list[_File], folder: Path, progress: _Progress) -> dict[str, str]:
    """Several files at once; the sha256 of each by name. The first error ends all."""
    with ThreadPoolExecutor(PARALLEL, "fetch") as pool:
        jobs = [pool.submit(_copy, filesystem, one, folder, progress) for one in found]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            progress.deadline = 0.0  # the others stop at their next chunk
            pool.shutdown(cancel_futures=True)
            raise
    return {one.name: job.result() for one, job in zip(found, jobs, strict=True)}


def _copy(filesystem: Any, one: _File, folder: Path, progress: _Progress) -> str:
    path = folder / one.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size == one.num_bytes:
        with path.open("rb") as here:
            digest = _pour(here, None, progress)[0]
        if one.digest in ("", digest):
            return digest
        progress.done -= one.num_bytes
    incoming = folder.parent / INCOMING
    incoming.mkdir(exist_ok=True)
    beside = incoming / uuid.uuid4().hex
    try:
        with filesystem.open(one.remote, "rb") as there, beside.open("wb") as here:
            digest, num_bytes = _pour(there, here, progress)
            here.flush()
            os.fsync(here.fileno())
        if num_bytes != one.num_bytes or one.digest not in ("", digest):
            raise OSError(f"{one.name} came with {num_bytes} of {one.num_bytes} bytes and the sha256 {digest}")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return digest


def _pour(there: Any, here: Any, progress: _Progress) -> tuple[str, int]:
    """Reads all, writes it where there is a place; returns its sha256 and its length."""
    digest, num_bytes = hashlib.sha256(), 0
    while chunk := there.read(CHUNK_BYTES):
        digest.update(chunk)
        num_bytes += len(chunk)
        if here is not None:
            here.write(chunk)
        progress.add(len(chunk))
    return digest.hexdigest(), num_bytes


def _write_marker(partial: Path, source: Source, found: list[_File], digests: Mapping[str, str]) -> None:
    files = {one.name: {"bytes": one.num_bytes, "sha256": digests[one.name]} for one in found}
    text = json.dumps({"uri": source.uri, "files": files}, indent=1)
    with (partial / MARKER).open("w", encoding="utf-8") as marker:
        marker.write(text)
        marker.flush()
        os.fsync(marker.fileno())


def _publish(partial: Path, target: Path, source: Source) -> None:
    """The one rename. What lies there of another URI goes; what another fetch put there meanwhile stays."""
    shutil.rmtree(partial / INCOMING, ignore_errors=True)
    former = target.with_name(f"{target.name}.former-{os.getpid()}")
    if _is_complete(target, source):
        shutil.rmtree(partial)
        return
    if target.exists():
        target.rename(former)
    partial.rename(target)
    shutil.rmtree(former, ignore_errors=True)


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
