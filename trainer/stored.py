"""Checkpoints that lie in object storage, seen from one machine.

    save   every rank writes its files to this machine's folder, then uploads them; the answer lists them, and only
           the controller's manifest makes them count
    load   the ranks of a machine bring what it lacks or has damaged, each its share, and verify all of it

The folder on the machine is a cache: it keeps the newest two checkpoints, since the newest may never count. In the
store a checkpoint has the name that the controller gave it, which is never used for another (epoch and counter of its
fence stand in it), so the upload of a writer that was taken for dead harms nobody.

One a rank, made by trainer/worker.py when the run has a store. `upload` runs in the thread of trainer/writer.py.
"""

import logging
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from crescendo.common.config.load import load_resolved
from crescendo.common.errors import CheckpointError
from crescendo.common.object_store import LIMIT_S, ObjectStore, file_digest
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import ServiceSpec
from crescendo.proto.v1 import trainer_pb2

log = logging.getLogger(__name__)

KEPT_HERE = 2
CHECKPOINTS = "checkpoints"
EXPORT = "export"

Files = list[trainer_pb2.CheckpointFile]


class Stored:
    """The run's checkpoints and export in the store, and this machine's copies. beat: called as bytes get through."""

    def __init__(self, spec: ServiceSpec, beat: Callable[[], None]) -> None:
        """Raises ConfigError for a store that cannot be."""
        self._folder = RunFolder(Path(spec.run_folder))
        config = self._folder.config
        limit_s = load_resolved(config).deadlines.checkpoint_s if config.is_file() else LIMIT_S
        # Where cores are the shared device, what is written beside a rollout is to count as this thread's (device.py).
        threads = spec.device != "cpu"
        self._store = ObjectStore(
            spec.store, credentials=spec.store_credentials, limit_s=limit_s, beat=beat, threads=threads
        )

    @property
    def machine(self) -> str:
        """The same for all ranks that share this one's folder, and for no others."""
        return f"{socket.gethostname()}:{self._folder.root.resolve()}"

    def place(self, path: str) -> Path:
        """Where a checkpoint lies on this machine, whatever folder the controller has."""
        return self._folder.checkpoints / Path(path).name

    @property
    def export(self) -> Path:
        """Where the export lies on this machine."""
        return self._folder.export

    def written(self, root: Path, write: Callable[[], Files]) -> Files:
        """Writes a rank's files of a checkpoint and uploads them."""
        files = write()
        self.upload(root, files, f"{CHECKPOINTS}/{root.name}")
        self._forget(root)
        return files

    def upload(self, root: Path, files: Sequence[trainer_pb2.CheckpointFile], below: str) -> None:
        """Uploads files; raises CheckpointError when one is not read as it was written, and as ObjectStore.put."""
        for file in files:
            digest = self._store.put(root / file.path, f"{below}/{file.path}")
            if digest != file.digest:
                raise CheckpointError(
                    f"{root / file.path} was written with digest {file.digest:016x} and read with {digest:016x}.",
                    fix="See whether this machine's disk or memory is damaged.",
                )

    def bring(self, root: Path, files: Sequence[trainer_pb2.CheckpointFile]) -> None:
        """Makes files of a checkpoint lie on this machine, verified. Raises as ObjectStore.get."""
        for file in files:
            path = root / file.path
            if not path.resolve().is_relative_to(root.resolve()):
                raise CheckpointError(f"checkpoint file {file.path!r} lies outside {root}.", field="files")
            if path.is_file():
                if path.stat().st_size == file.num_bytes and file_digest(path) == file.digest:
                    continue
                log.warning("%s is damaged and is fetched again", path)
            self._store.get(f"{CHECKPOINTS}/{root.name}/{file.path}", path, file.num_bytes, file.digest)

    def _forget(self, newest: Path) -> None:
        """Removes what only the store need keep."""
        others = [path for path in newest.parent.iterdir() if path.is_dir() and path != newest]
        for old in sorted(others, key=_age)[: -(KEPT_HERE - 1)]:
            shutil.rmtree(old, ignore_errors=True)


def _age(path: Path) -> float:
    """When it was made; a folder that another rank has just removed is the oldest."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
