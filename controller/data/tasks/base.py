"""What a procedural task is, and how its problems become rows."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

from crescendo.common.errors import ConfigError, DataError
from crescendo.controller.data.rows import Row

Options = TypeVar("Options")


@dataclass(frozen=True)
class Problem:
    """A problem with its exact answer; difficulty from 0 to 1 if the task knows it."""

    question: str
    answer: str
    difficulty: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Demonstration:
    """A problem with a response worth imitating, without its end-of-sequence token."""

    question: str
    response: str


class Task(Protocol):
    """A family of problems."""

    name: str

    def problems(self, seed: int) -> Iterator[Problem]:
        """Problems in an order fixed by the seed; it may repeat itself, and it may end."""
        ...

    def demonstration(self, generator: random.Random, progress: float) -> Demonstration:
        """One demonstration for a warm-up that is `progress` (0..1) done; raises DataError if the task has none."""
        ...


class TaskSource:
    """A data source over a task's problems, each once."""

    # A task that repeats itself so often in a row has no more problems to give.
    _MAX_REPEATS = 1000

    def __init__(self, task: Task, num_problems: int, seed: int) -> None:
        if num_problems < 1:
            raise ConfigError(
                f"num_prompts is {num_problems}; a task needs to know how many problems to make.",
                field="data.num_prompts",
                fix="Set it, as in --set data.train.num_prompts=1024.",
            )
        self._task = task
        self._num_problems = num_problems
        self._seed = seed

    def rows(self) -> Iterator[Row]:
        """Distinct problems without end, so that rows set aside are replaced; fewer if the task has fewer."""
        seen: set[str] = set()
        repeats = 0
        for problem in self._task.problems(self._seed):
            if problem.question in seen:
                repeats += 1
                if repeats >= self._MAX_REPEATS:
                    break
                continue
            repeats = 0
            seen.add(problem.question)
            values: dict[str, Any] = {"question": problem.question, "answer": problem.answer}
            if problem.difficulty is not None:
                values["difficulty"] = problem.difficulty
            yield Row(self._task.name, len(seen), values=values, metadata=problem.metadata)
        if len(seen) < self._num_problems:
            raise DataError(
                f"task {self._task.name} has only {len(seen)} different problems with these options; "
                f"{self._num_problems} are asked for.",
                field="data.num_prompts",
                fix="Lower num_prompts, or widen the task's options.",
            )


def read_options(kind: type[Options], options: Mapping[str, str], task: str) -> Options:
    """Options from text into a dataclass of int, float and str fields; raises ConfigError on a wrong one."""
    types = {item.name: item.type for item in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, text in options.items():
        if name not in types:
            raise ConfigError(
                f"task {task} has no option {name!r}; it has: {', '.join(types)}.",
                field=f"data.options.{name}",
                fix="Correct the name.",
            )
        convert = {int: int, float: float, str: str}[types[name]]  # type: ignore[index]
        try:
            values[name] = convert(text)
        except ValueError as error:
            raise ConfigError(
                f"option {name} of task {task} is {text!r}; it must be of type {convert.__name__}.",
                field=f"data.options.{name}",
                fix="Correct the value.",
            ) from error
    return kind(**values)
