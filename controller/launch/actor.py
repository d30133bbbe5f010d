"""The Ray actor that is a service process: it loads an entry point, starts it and returns its address.

Ray's restarts are off: the controller alone replaces actors. An actor ends with the controller's process,
because Ray ends a driver's actors with the driver.
"""

import asyncio
import os
import socket
import traceback
from importlib.metadata import entry_points
from pathlib import Path

from crescendo.common.errors import CrescendoError, WorkerStartError
from crescendo.common.rpc.server import ADDRESS_VARIABLE, LOOPBACK
from crescendo.common.service import ENTRY_POINT_GROUP, RunningService, ServiceSpec
from crescendo.controller.store import with_inputs

# Spinning OpenMP threads of one engine cost the other a factor of ten on shared cores.
QUIET_THREADS = {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}


def compute_environment(spec: ServiceSpec) -> dict[str, str]:
    """Environment variables of a compute process; set before torch is imported."""
    threads = spec.threads or os.cpu_count() or 1
    return {**QUIET_THREADS, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


class ServiceActor:
    """Lives as long as its service. Every method is called by the controller through Ray."""

    def __init__(self) -> None:
        self._service: RunningService | None = None

    async def start(self, spec_json: str) -> str:
        """Starts the service that the spec's role names; returns its address.

        Raises WorkerStartError with the last lines of the traceback; the whole of it is in the log.
        """
        from crescendo.common.telemetry import setup_logging

        spec = ServiceSpec.from_json(spec_json)
        os.environ.update(compute_environment(spec))
        setup_logging(Path(spec.run_folder) / "logs", spec.run_id, spec.worker_id, capture_output=True)
        points = entry_points(group=ENTRY_POINT_GROUP, name=spec.role)
        if not points:
            raise WorkerStartError(
                f"no service is registered for role {spec.role!r} in entry points {ENTRY_POINT_GROUP}.",
                fix="Install the project again: make setup.",
            )
        spec = await asyncio.to_thread(with_inputs, spec)
        try:
            self._service = await next(iter(points)).load()(spec)
        except CrescendoError:
            raise
        except Exception as error:
            lines = traceback.format_exc().strip().splitlines()
            traceback.print_exc()
            raise WorkerStartError(f"{spec.worker_id} did not start: {lines[-1]}") from error
        return self._service.address

    async def rendezvous(self) -> str:
        """host:port on this actor's pod or machine where a gang can meet; the port is free now."""
        host = os.environ.get(ADDRESS_VARIABLE, LOOPBACK)
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"{host}:{probe.getsockname()[1]}"

    async def process_id(self) -> int:
        """The actor's process id."""
        return os.getpid()

    async def stop(self, grace_s: float) -> None:
        """Drains and ends the service; the process stays until Ray ends it."""
        if self._service is not None:
            await self._service.stop(grace_s)
            self._service = None
