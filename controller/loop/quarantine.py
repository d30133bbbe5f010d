"""Engines that a person took out of service, kept in the run folder: who starts the controller again keeps them out.

    QuarantineEngine -> file -> answer          so that what was answered is not forgotten
    forgotten:  ScaleEngines; other pods, where the name is another engine's (each attempt on a cluster has its own
                RayCluster); a layout that would be left without engines

Made by the controller process (app.py), changed by ControllerService, read by the loop.
"""

import json
import os
from pathlib import Path
from typing import Final

from crescendo.common.runfolder import write_atomically

PLACE_VARIABLE: Final = "RAY_CLUSTER_NAME"  # KubeRay's, in each of its pods


class Quarantine:
    """The engines' worker ids. path: None keeps nothing; place: whose engines they are, empty for this machine's."""

    def __init__(self, path: Path | None = None, place: str | None = None) -> None:
        self._path = path
        self._place = os.environ.get(PLACE_VARIABLE, "") if place is None else place
        self.engines: frozenset[str] = frozenset()
        if path is not None and path.exists():
            stored = json.loads(path.read_text())
            if stored["place"] == self._place:
                self.engines = frozenset(stored["engines"])

    def add(self, name: str) -> None:
        """Takes an engine out; returns when it is kept."""
        self._set(self.engines | {name})

    def clear(self) -> None:
        """Nobody is out any more."""
        self._set(frozenset())

    def _set(self, engines: frozenset[str]) -> None:
        if self._path is not None:
            write_atomically(self._path, json.dumps({"place": self._place, "engines": sorted(engines)}))
        self.engines = engines
