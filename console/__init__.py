"""The operator's web console: one run, living or finished, on loopback."""

from crescendo.console.app import create_app
from crescendo.console.server import serve_console
from crescendo.console.source import FinishedRun, LiveRun, RunSource, SwitchingRun

__all__ = ["FinishedRun", "LiveRun", "RunSource", "SwitchingRun", "create_app", "serve_console"]
