"""The controller of a light run: as `python -m crescendo.controller`, with everything it starts in its own process."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from crescendo.buffer.archive.service import start as start_archiver
from crescendo.common.config.layouts import Layout
from crescendo.common.service import RunningService, ServiceSpec
from crescendo.controller import app
from crescendo.controller.launch import fleet
from crescendo.controller.launch.cluster import ActorHandle
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.quarantine import Quarantine
from crescendo.rollout.service import start as start_rollout
from tests.integration.light_run import write_light_report
from tests.integration.light_services import start_executor, start_reward, start_trainer

LOOK_S = 0.01


async def start_engine(spec: ServiceSpec) -> RunningService:
    """The rollout service, its scripted engine slow enough to be interrupted."""
    options = {**spec.options, "scripted.step_s": os.environ.get("LIGHT_STEP_S", "0")}
    return await start_rollout(replace(spec, options=options))


STARTERS = {
    "trainer": start_trainer,
    "rollout": start_engine,
    "reward": start_reward,
    "executor": start_executor,
    "archiver": start_archiver,
}


class OneProcess:
    """The seam of launch/cluster.py without Ray: a service that is started here is placed."""

    is_local = False  # the processes' ids are the controller's own
    is_connected = False

    def __init__(self, uses_gpu: bool) -> None:
        pass

    async def connect(self, scratch: Path, deadline_s: float) -> None:
        """Nothing to connect to."""
        self.is_connected = True

    async def reserve(self, layout: Layout, deadline_s: float, *, grows: bool = False) -> None:
        """There are always enough."""

    def spanned(self, first: int, count: int) -> dict[str, str]:
        """There are no bundles."""
        return {}

    def why_lost(self) -> str:
        """It cannot be lost."""
        return ""

    async def start(self, spec: ServiceSpec, *, bundle: int = 0, deadline_s: float = 0.0) -> ActorHandle:
        """Starts the service."""
        service: RunningService = await STARTERS[spec.role](spec)
        return ActorHandle(service, service.address, os.getpid())

    async def is_alive(self, deadline_s: float = 0.0) -> bool:
        """As long as the process."""
        return True

    def kill(self, actor: Any) -> None:
        """Ended by `stop`."""

    async def stop(self, handle: ActorHandle, grace_s: float) -> None:
        """Ends the service."""
        await handle.actor.stop(grace_s)

    async def shutdown(self) -> None:
        """Nothing to shut down."""


async def start_local(module: str, spec: ServiceSpec, control: Path, deadline_s: float) -> ActorHandle:
    """The stand-in for launch/local.py."""
    return await OneProcess(uses_gpu=False).start(spec)


@dataclass
class Person:
    """Somebody who watches a run and steers it. promote_after, scale: by iteration, 0 and empty: never."""

    promote_after: int = 0
    scale: Mapping[int, int] = field(default_factory=dict)
    control: Control = field(default_factory=Control)
    board: Board | None = None

    def sit_down(self, *arguments: Any, **options: Any) -> Board:
        """The run's notice board, which the person looks at from now on."""
        self.board = Board(*arguments, **options)
        return self.board

    def take_controls(self, quarantine: Quarantine) -> Control:
        """The run's controls, which the person has in hand."""
        self.control.quarantine = quarantine
        return self.control

    async def steer(self) -> None:
        """Promotes when the iteration's row is there; scales in the middle of the iteration's rollout."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self.board is None:
                continue
            if self.promote_after and any(row.values.get("iteration") == self.promote_after for row in self.board.rows):
                self.promote_after, self.control.promote_to = 0, ""
            status = self.board.status
            if status.phase == "rollout" and status.phase_progress > 0:
                self.control.num_engines = self.scale.get(status.iteration, self.control.num_engines)


async def run_light(root: Path, person: Person) -> int:
    """Runs a folder; returns the exit code."""
    with (
        mock.patch.object(app, "Board", person.sit_down),
        mock.patch.object(app, "Control", person.take_controls),
        mock.patch.object(fleet, "Cluster", OneProcess),
        mock.patch.object(fleet, "start_local", start_local),
        mock.patch.object(app, "LINGER_S", 0.05),
        mock.patch.object(app, "write_report", write_light_report),
    ):
        steering = asyncio.create_task(person.steer())
        try:
            return await app.run_controller(root)
        finally:
            steering.cancel()
