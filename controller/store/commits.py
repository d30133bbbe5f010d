"""What the controller does in a checkpoint store; the trainer writes and reads the checkpoints themselves.

    RUN-ID/checkpoints/<name of a commit>/...     the trainer's files, as its manifest lists them
    RUN-ID/commits/commit-N.json, seal-E.json     copies of the run folder's, for a volume that is lost
    RUN-ID/inputs.json, inputs/...                for workers on other machines (inputs.py)
    RUN-ID/export/...                             the final policy

The manifest in the run folder is and stays the only commit point: it is placed after all files are in the store, and
copied afterwards. `match` brings the store up to it and is repeated after each commit, so that what one could not do
(a store that is away, a death) the next one does.
"""

from collections.abc import Callable, Set
from typing import Final

from crescendo.common.config.schema import Config
from crescendo.common.errors import RunFolderError
from crescendo.common.object_store import ObjectStore
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.controller.store.inputs import carry_inputs

COMMITS: Final = "commits"
CHECKPOINTS: Final = "checkpoints"


def store_fields(role: str, config: Config, folder: RunFolder) -> dict[str, str]:
    """What a service's spec says of the store: nothing, unless it saves and loads."""
    if not config.checkpoint_store.url or role not in ("trainer", "rollout"):
        return {}
    return {"store": _url(config, folder), "store_credentials": config.checkpoint_store.credentials}


def _url(config: Config, folder: RunFolder) -> str:
    """The run's own place in the store."""
    return f"{config.checkpoint_store.url.rstrip('/')}/{folder.run_id()}"


def open_store(config: Config, folder: RunFolder) -> ObjectStore | None:
    """The run's store; None when it has none. Raises ConfigError for one that cannot be."""
    if not config.checkpoint_store.url:
        return None
    return ObjectStore(
        _url(config, folder),
        credentials=config.checkpoint_store.credentials,
        limit_s=config.deadlines.checkpoint_s,
    )


def open_stored(config: Config, folder: RunFolder) -> "StoredCommits | None":
    """The run's store for its controller, which puts there what workers need; None when the run has none.

    Raises ConfigError for one that cannot be or refuses, StoreUnavailableError for one that is away.
    """
    store = open_store(config, folder)
    if store is None:
        return None
    store.write("run.json", folder.identity.read_bytes())  # a store that takes nothing is found out now
    if config.checkpoint_store.carries_inputs:
        carry_inputs(store, folder)
    return StoredCommits(store, folder)


class StoredCommits:
    """Manifests and checkpoints in the store. Blocking."""

    def __init__(self, store: ObjectStore, folder: RunFolder) -> None:
        self.store = store
        self._folder = folder

    def match(self, named: Set[str], is_past: Callable[[str], bool]) -> None:
        """Copies manifests and seals that the store lacks, and removes what the run folder no longer names.

        named: checkpoints of the commits that count; is_past: whether a checkpoint was begun by this controller or an
        earlier one. What a newer controller writes is left alone.
        """
        commits = {path.name for path in self._folder.checkpoints.glob("commit-*.json")}
        here = commits | {path.name for path in self._folder.checkpoints.glob("seal-*.json")}
        there = set(self.store.names(COMMITS))
        for name in sorted(here - there):
            self.store.write(f"{COMMITS}/{name}", (self._folder.checkpoints / name).read_bytes())
        newest = max(commits, default="")
        for name in sorted(there - here):
            if name.startswith("commit-") and name < newest:
                self.store.remove(f"{COMMITS}/{name}")
        for name in self.store.names(CHECKPOINTS):
            if name not in named and is_past(name):
                self.store.remove(f"{CHECKPOINTS}/{name}")

    def restore(self, *, buffer_knows: bool) -> list[str]:
        """Gives a run folder without commits those of the store; returns the names of what it wrote.

        buffer_knows: whether the buffer has commits of this run. Raises RunFolderError when it has not: the two
        belong together.
        """
        if any(self._folder.checkpoints.glob("commit-*.json")):
            return []
        names = [name for name in self.store.names(COMMITS) if name.endswith(".json")]
        if names and not buffer_knows:
            raise RunFolderError(
                f"{self.store.url} holds commits of this run, but its buffer is new and knows none of them.",
                field="buffer",
                fix="Restore the buffer's volume, or begin a new run, with another name or run id.",
            )
        for name in names:
            text = self.store.read(f"{COMMITS}/{name}")
            if text is not None:
                write_atomically(self._folder.checkpoints / name, text.decode())
        return names
