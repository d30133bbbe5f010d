"""Starts, watches and ends the run's processes. The only place that imports ray."""

from crescendo.controller.launch.fleet import Fleet, Worker

__all__ = ["Fleet", "Worker"]
