"""Procedural tasks: problems made on demand, with exact answers. A new task is a file and a line here."""

from collections.abc import Mapping

from crescendo.common.errors import ConfigError
from crescendo.controller.data.tasks.base import Demonstration, Problem, Task, TaskSource
from crescendo.controller.data.tasks.clock_sum import ClockSum
from crescendo.controller.data.tasks.reasoning_gym import PREFIX, ReasoningGym

TASKS = ("clock_sum", f"{PREFIX}<name>")


def create_task(name: str, options: Mapping[str, str]) -> Task:
    """The task of a name; raises ConfigError on an unknown task or option."""
    if name == "clock_sum":
        return ClockSum.from_options(options)
    if name.startswith(PREFIX):
        return ReasoningGym(name.removeprefix(PREFIX), options)
    raise ConfigError(
        f"there is no task {name!r}; there are: {', '.join(TASKS)}.",
        field="data.path",
        fix="Name one of them; reasoning_gym/<name> takes any of that package's data sets.",
    )


__all__ = ["TASKS", "Demonstration", "Problem", "Task", "TaskSource", "create_task"]
