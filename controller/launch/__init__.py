"""Starts, watches and ends the run's processes. The only place that imports ray."""

from crescendo.controller.launch.fleet import Fleet, engine_name
from crescendo.controller.launch.supervisor import Supervisor
from crescendo.controller.launch.worker import Worker

__all__ = ["Fleet", "Supervisor", "Worker", "engine_name"]
