"""The controller of a light run: as `python -m crescendo.controller`, with everything it starts in its own process."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from crescendo.common.config.schema import PlacementConfig
from crescendo.common.service import RunningService, ServiceSpec
from crescendo.controller import app
from crescendo.controller.launch import fleet
from crescendo.controller.launch.cluster import ActorHandle
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.control import Control
from crescendo.rollout.service import start as start_rollout
from tests.integration.light_run import write_light_report
from tests.integration.light_services import start_executor, start_reward, start_trainer

STARTERS = {"trainer": start_trainer, "rollout": start_rollout, "reward": start_reward, "executor": start_executor}


class OneProcess:
    """The seam of launch/cluster.py without Ray: a service that is started here is placed."""

    is_local = False  # the processes' ids are the controller's own
    is_connected = False

    def __init__(self, placement: PlacementConfig, uses_gpu: bool) -> None:
        pass

    async def connect(self, scratch: Path, deadline_s: float) -> None:
        """Nothing to connect to."""
        self.is_connected = True

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
    return await OneProcess(PlacementConfig(), uses_gpu=False).start(spec)


class PromotedBoard(Board):
    """A notice board beside which a person stands, who promotes the stage after some iterations."""

    promote_after = 0

    def metrics(self, stage: str, values: Mapping[str, float]) -> None:
        """Appends a row; presses the button when it is time."""
        super().metrics(stage, values)
        if int(values.get("iteration", 0)) == self.promote_after > 0:
            CONTROLS[0].promote_to = ""


CONTROLS: list[Control] = []


def make_control() -> Control:
    """The run's control, remembered for the person."""
    CONTROLS.append(Control())
    return CONTROLS[-1]


async def run_light(root: Path, promote_after: int = 0) -> int:
    """Runs a folder; returns the exit code."""
    PromotedBoard.promote_after = promote_after
    with (
        mock.patch.object(app, "Board", PromotedBoard),
        mock.patch.object(app, "Control", make_control),
        mock.patch.object(fleet, "Cluster", OneProcess),
        mock.patch.object(fleet, "start_local", start_local),
        mock.patch.object(app, "LINGER_S", 0.05),
        mock.patch.object(app, "write_report", lambda config, folder, state, rows: write_light_report(folder)),
    ):
        return await app.run_controller(root)
