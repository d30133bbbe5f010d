"""The run folder: which file is where. Nothing else builds these paths."""

import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from crescendo.common import failpoints
from crescendo.common.errors import RunFolderError

RUN_ID_VARIABLE = "CRESCENDO_RUN_ID"  # of the run that is created: on a cluster its operator names it
FORMAT_VERSION = 1


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. `create` makes a new folder, `open_existing` checks an old one."""

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "run.json"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def controller(self) -> Path:
        """Address, process id and epoch of the living controller, as JSON."""
        return self.root / "control" / "controller.json"

    @property
    def token(self) -> Path:
        """The one-time token of the run's services and console, mode 0600."""
        return self.root / "control" / "token"

    @property
    def engines_out(self) -> Path:
        """Engines that a person took out of service."""
        return self.root / "control" / "engines-out.json"

    @property
    def lock(self) -> Path:
        return self.root / "control" / "lock"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def samples(self) -> Path:
        return self.root / "samples.jsonl"

    @property
    def attestations(self) -> Path:
        """Which engine proved which weight version, and when; a version is served only after its line is here."""
        return self.root / "attestations.jsonl"

    @property
    def quarantine(self) -> Path:
        """Rows and prompts that were set aside, with their reasons."""
        return self.root / "quarantine.jsonl"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def buffer(self) -> Path:
        return self.root / "buffer"

    @property
    def archive(self) -> Path:
        """Payloads of ended groups in Parquet, unless `archive.url` leads elsewhere."""
        return self.root / "archive"

    @property
    def model(self) -> Path:
        """The policy that the run started from, in Hugging Face format."""
        return self.root / "model"

    @property
    def weights(self) -> Path:
        """Published weight versions of the disk channel."""
        return self.root / "weights"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        """The final policy, in Hugging Face format."""
        return self.root / "export"

    @property
    def plots(self) -> Path:
        return self.root / "plots"

    def run_id(self) -> str:
        """The run's id, unique beyond its name."""
        return str(self._identity()["run_id"])

    def read_token(self) -> str:
        """The token that opens the run's services."""
        return self.token.read_text().strip()

    def _identity(self) -> dict[str, object]:
        try:
            loaded: dict[str, object] = json.loads(self.identity.read_text())
        except FileNotFoundError:
            raise RunFolderError(
                f"{self.root} is not a run folder: it has no run.json.",
                fix="Give the folder that `crescendo run` made, such as runs/quickstart.",
            ) from None
        except json.JSONDecodeError as error:
            raise RunFolderError(f"{self.identity} is damaged: {error}.", fix="Restore it from a copy.") from None
        return loaded

    @classmethod
    def create(cls, root: Path, name: str, run_id: str = "") -> "RunFolder":
        """Makes a new run folder; raises RunFolderError when it holds a run already. run_id: empty makes one up."""
        folder = cls(root)
        if folder.identity.exists():
            raise RunFolderError(
                f"{root} holds a run already.",
                field="run.name",
                fix=f"Continue it with `crescendo resume {root}`, or choose a name with `--set run.name=...`.",
            )
        for path in (folder.controller.parent, folder.logs, folder.buffer, folder.checkpoints, folder.plots):
            path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder.token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        identity = {
            "format_version": FORMAT_VERSION,
            "run_id": run_id or f"{name}-{secrets.token_hex(4)}",
            "name": name,
            "created_unix_s": time.time(),
        }
        write_atomically(folder.identity, json.dumps(identity, indent=2))
        return folder

    @classmethod
    def open_existing(cls, root: Path) -> "RunFolder":
        """Opens a run folder; raises RunFolderError when it is none, or of another version."""
        folder = cls(root)
        found = folder._identity().get("format_version")
        if found != FORMAT_VERSION:
            raise RunFolderError(
                f"{root} has run-folder format {found}; this Crescendo reads format {FORMAT_VERSION}.",
                field="format_version",
                fix="Use the Crescendo version that made it, or start a new run.",
            )
        return folder


def write_atomically(path: Path, text: str, *, exclusive: bool = False) -> None:
    """Writes a file so that readers see the old text or the new one, also after a crash.

    exclusive: raises FileExistsError when there is such a file already, whoever made it and when.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(scratch, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    failpoints.reach(f"rename {path.name}")
    if exclusive:
        os.link(scratch, path)
        scratch.unlink()
    else:
        os.replace(scratch, path)
    sync(path.parent)


def sync(*paths: Path) -> None:
    """Brings files to the disk, and names by the folders that hold them."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
