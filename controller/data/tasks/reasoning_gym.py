"""Any data set of the reasoning-gym package (Stojanovski et al., 2025) as a task: reasoning_gym/<name>.

Its own `reasoning_gym` scorer judges the answers; it reads the metadata `dataset` and `entry`. The package is
imported when a task is made, because it loads many others.
"""

import ast
import json
import random
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from crescendo.common.errors import ConfigError, DataError
from crescendo.controller.data.tasks.base import Demonstration, Problem

PREFIX = "reasoning_gym/"
# The package wants a size up front and makes each problem when it is asked for it.
_SIZE = 1 << 30


class ReasoningGym:
    """One data set of the package."""

    def __init__(self, dataset: str, options: Mapping[str, str]) -> None:
        """options are the data set's own config fields, as Python literals; raises ConfigError when it refuses."""
        self.name = f"{PREFIX}{dataset}"
        self._dataset = dataset
        self._options = {name: _literal(text) for name, text in options.items()}
        self._create(seed=0)

    def problems(self, seed: int) -> Iterator[Problem]:
        """Problem i depends on (seed, i) alone."""
        dataset = self._create(seed)
        for index in range(_SIZE):
            entry = dataset[index]
            yield Problem(
                question=str(entry["question"]).strip(),
                answer=str(entry["answer"]),
                metadata={"dataset": self._dataset, "entry": json.dumps(entry, default=str, sort_keys=True)},
            )

    def demonstration(self, generator: random.Random, progress: float) -> Demonstration:
        """reasoning-gym has answers, but no chains of thought to imitate."""
        raise DataError(
            f"task {self.name} has no demonstrations.",
            field="sft.data.path",
            fix="Take demonstrations from a JSONL or Parquet file with columns question and response.",
        )

    def _create(self, seed: int) -> Any:
        with warnings.catch_warnings():
            # Its dependencies have invalid escapes and the like, which Python reports when it compiles them.
            warnings.simplefilter("ignore", SyntaxWarning)
            import reasoning_gym
        try:
            return reasoning_gym.create_dataset(self._dataset, size=_SIZE, seed=seed, **self._options)
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"reasoning-gym refuses data set {self._dataset!r} with options {self._options}: {error}.",
                field="data.options",
                fix="Check the data set's name and its config fields in the reasoning-gym gallery.",
            ) from error


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
