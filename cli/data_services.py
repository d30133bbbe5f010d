"""The processes that `crescendo data` needs for a while: an executor that grades, an engine that generates.

They end with the command, however it ends. Their logs are shown when they do not start.
"""

import argparse
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from crescendo.cli.processes import Child, spawn
from crescendo.common.errors import RequestError, WorkerStartError
from crescendo.common.service import ServiceSpec
from crescendo.reward_service.data import Grader
from crescendo.reward_service.executors import Executors

START_S = 600.0
GRACE_S = 10.0
POLL_S = 0.05
LOG_TAIL = 1_500


class Services:
    """`with Services() as services: address = services.start_executor(...)`."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self._folder = tempfile.TemporaryDirectory(prefix="crescendo-data-", ignore_cleanup_errors=True)
        self._children: list[Child] = []

    def __enter__(self) -> "Services":
        return self

    def start_executor(self, workers: int, scorer: str) -> str:
        """host:port of an executor; raises WorkerStartError with the end of its log."""
        options = {"workers": str(workers), "scorers": scorer}
        spec = ServiceSpec("executor", "executor-0", "", "data", "", options=options)
        return self._start(["crescendo.reward_service", "executor"], spec)

    def start_engine(self, spec: ServiceSpec) -> str:
        """host:port of a RolloutService that serves the spec's model; see engine_host.py."""
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
        return self._start(["crescendo.cli.engine_host"], replace(spec, token=self.token, run_folder=self._folder.name))

    def _start(self, command: Sequence[str], spec: ServiceSpec) -> str:
        folder = Path(self._folder.name)
        spec_file, ready_file, log = (folder / f"{spec.worker_id}.{kind}" for kind in ("spec.json", "ready", "log"))
        descriptor = os.open(spec_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(spec.to_json())
        child = spawn([*command, "--spec-file", str(spec_file), "--ready-file", str(ready_file)], log)
        self._children.append(child)
        deadline_s = time.monotonic() + START_S
        while not ready_file.exists():
            if not child.is_alive or time.monotonic() > deadline_s:
                tail = log.read_text(errors="replace")[-LOG_TAIL:].strip()
                raise WorkerStartError(f"the {spec.role} did not start. The end of its log:\n{tail}")
            time.sleep(POLL_S)
        return ready_file.read_text().strip()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._children):
            child.end(GRACE_S)
        self._folder.cleanup()


@asynccontextmanager
async def grader_at(address: str, options: argparse.Namespace) -> AsyncIterator[Grader]:
    """A grader over the executor at an address, as the arguments say."""
    executors = await Executors.connect(address)
    try:
        yield Grader(executors, options.scorer, scorer_options(options.scorer_option), options.deadline)
    finally:
        await executors.close()


def scorer_options(given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE each; raises RequestError."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise RequestError(f"--scorer-option {text!r} is not NAME=VALUE.", field="scorer-option")
        found[name] = value
    return found
