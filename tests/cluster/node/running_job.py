"""An RLJob that runs in pods, seen from its status and from its volume, which is a folder of this machine.

What the run does is read from the volume, since its status is at most 30 s old.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.cluster.jobs import JobView
from tests.cluster.kube.node import Node
from tests.cluster.node.diagnosis import diagnosis

RUNNING_S: Final = 300.0
GROWS_S: Final = 180.0  # a run is Running as soon as its controller answers: trainer and engine are yet to start
Eventually = Callable[..., None]


@dataclass
class RunningJob:
    """The job and its volume."""

    node: Node
    view: JobView
    volume: Path
    eventually: Eventually

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.volume / self.view.name

    def until(self, what: str, holds: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Waits; says what helps when it waits in vain."""
        try:
            self.eventually(what, holds, limit_s)
        except BaseException:
            print(diagnosis(self.node, self.view))
            raise

    def until_phase(self, phase: str, limit_s: float = RUNNING_S) -> None:
        """Waits for a phase."""
        self.until(f"phase {phase}", lambda: self.view.phase == phase, limit_s)

    def iterations(self) -> list[int]:
        """Those that the run has written down so far, in order."""
        return [int(row["iteration"]) for row in self._lines("metrics.jsonl") if "iteration" in row]

    def grows(self, by: int = 1) -> None:
        """Waits until the run has done more iterations."""
        done = len(self.iterations())
        self.until(f"{by} more iterations", lambda: len(self.iterations()) >= done + by, GROWS_S)

    def commits(self) -> list[Path]:
        """Manifests, the oldest first."""
        return sorted((self.folder / "checkpoints").glob("commit-*.json"))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Of the run itself."""
        return [event for event in self._lines("events.jsonl") if event["kind"] == kind]

    def reasons(self) -> list[str]:
        """Of the RLJob's events."""
        found = self.node.get("events", "-n", self.view.namespace, "--field-selector=involvedObject.kind=RLJob")
        return [event["reason"] for event in found["items"] if event["involvedObject"]["name"] == self.view.name]

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""  # the last may be half written
        return [json.loads(line) for line in whole.splitlines()]
