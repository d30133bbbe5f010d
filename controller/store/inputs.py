"""What workers need whose machines do not share the run folder: its configuration and the model, by the store.

    controller, at its start    model files (each once), then inputs.json, which lists them and holds the configuration
    a machine's first worker    fetches both into a run folder of the machine's own; the others wait for it
    the trainer, at the end     uploads the export; the controller brings it into the run folder

Secrets are not among it: the configuration names files that hold them.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from crescendo.common.errors import CheckpointError, DeadlineError
from crescendo.common.object_store import ObjectStore, file_digest
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.common.service import ServiceSpec
from crescendo.controller.fetch.cache import PATTERNS
from crescendo.controller.fetch.uri import Kind

log = logging.getLogger(__name__)

LISTING: Final = "inputs.json"
MODEL: Final = "inputs/model"
EXPORT: Final = "export"
WAIT_S: Final = 1800.0
POLL_S: Final = 0.2

File = tuple[str, int, int]
"""Path, bytes and xxh3-64 digest."""


def carry_inputs(store: ObjectStore, folder: RunFolder) -> None:
    """Puts them into the store. A run's model never changes, so what is there stays."""
    known = {name: (size, digest) for name, size, digest in _listing(store)[1]}
    model: list[File] = []
    for path in _model_files(folder.model):
        name, size = path.relative_to(folder.model).as_posix(), path.stat().st_size
        there = known.get(name)
        digest = there[1] if there and there[0] == size else store.put(path, f"{MODEL}/{name}")
        model.append((name, size, digest))
    listing = {"config": folder.config.read_text(encoding="utf-8"), "model": model}
    store.write(LISTING, json.dumps(listing, indent=1).encode())


def _model_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if any(fnmatch(path.name, pattern) for pattern in PATTERNS[Kind.MODEL])]


def _listing(store: ObjectStore) -> tuple[str, list[File]]:
    """Configuration and model files; empty when there is none yet."""
    raw = store.read(LISTING)
    found: dict[str, Any] = json.loads(raw) if raw is not None else {"config": "", "model": []}
    return str(found["config"]), [(name, size, digest) for name, size, digest in found["model"]]


def with_inputs(spec: ServiceSpec) -> ServiceSpec:
    """The spec of a worker, whose run folder and model are on this machine afterwards.

    Raises CheckpointError when the store has not what is missing here, and as ObjectStore.get.
    """
    folder = RunFolder(Path(spec.run_folder))
    if not spec.store or (folder.config.is_file() and Path(spec.model_path).is_dir()):
        return spec
    folder.root.mkdir(parents=True, exist_ok=True)
    with _alone(folder.root / ".inputs.lock"):
        if not folder.config.is_file():
            _bring(ObjectStore(spec.store, credentials=spec.store_credentials), folder)
    return replace(spec, model_path=str(folder.model))


def _bring(store: ObjectStore, folder: RunFolder) -> None:
    config, model = _listing(store)
    if not config:
        raise CheckpointError(
            f"{folder.root} holds no run on this machine, and {store.url} has no {LISTING}.",
            field="checkpoint_store.carries_inputs",
            fix="Set it to true, or let all machines share the run folder.",
        )
    if not folder.model.is_dir():
        log.info("the model comes from %s", store.url)
        incoming = folder.model.with_name("model.incoming")
        _bring_files(store, MODEL, incoming, model)
        incoming.rename(folder.model)
    write_atomically(folder.config, config)  # last: it says that all is there


def bring_export(store: ObjectStore, folder: RunFolder, files: Iterable[File]) -> None:
    """Makes the export lie in the run folder; what is there already stays."""
    _bring_files(store, EXPORT, folder.export, files)


def _bring_files(store: ObjectStore, below: str, target: Path, files: Iterable[File]) -> None:
    for name, size, digest in files:
        path = target / name
        if not path.resolve().is_relative_to(target.resolve()):
            raise CheckpointError(f"{store.url} lists {name!r}, which lies outside {below}.", field="path")
        if path.is_file() and path.stat().st_size == size and file_digest(path) == digest:
            continue
        store.get(f"{below}/{name}", path, size, digest)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds a lock of this machine; the kernel lets go of it when its holder dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    give_up = time.monotonic() + WAIT_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise DeadlineError(f"another worker held {path} for {WAIT_S:.0f} s.") from None
                time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)
