"""A run in one light process: the real controller and rollout service, stand-ins for trainer and reward service.

`LightRun` prepares a run folder and lives it: each life is a process forked from one that has everything imported
already, so that it starts in a fraction of a second and can be killed like any other.
"""

import asyncio
import json
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from crescendo.common import failpoints
from crescendo.common.config import Config, load_config, save_resolved
from crescendo.common.runfolder import RunFolder, write_atomically
from tests.integration.run_process import RECIPE

LIFE_S = 60.0
_PRELOADED = ["tests.integration.light_run", "tests.integration.light_controller"]

# Two stages of three iterations; the first goes back to an earlier checkpoint. Long answers are parked and continued.
LIGHT = (
    "rollout.engine=scripted",
    "archive.enabled=false",
    "rollout.flush_tokens=4",
    "data.train.num_prompts=16",
    "data.validation.num_prompts=4",
    "steps.0.sft.steps=4",
    "steps.0.sft.batch_size=2",
    "steps.1.rl.validation.num_prompts=2",
    "steps.1.rl.validation.every_iterations=2",
    "steps.1.rl.checkpoints.every_iterations=2",
    "steps.1.rl.partial.max_spans=8",
    *(f"steps.1.rl.stages.{n}.prompts_per_iteration=3" for n in range(2)),
    *(f"steps.1.rl.stages.{n}.samples_per_prompt=2" for n in range(2)),
    *(f"steps.1.rl.stages.{n}.gate.name=step" for n in range(2)),
    *(f"steps.1.rl.stages.{n}.gate.iterations=3" for n in range(2)),
    *(f"steps.1.rl.stages.{n}.gate.min_iterations=0" for n in range(2)),
    "steps.1.rl.stages.0.gate.rollback=length_minimum",
    "steps.1.rl.stages.1.reward_weights={}",
    "recovery.backoff_s=0.05",
    "archive.enabled=false",
)


@dataclass
class LightRun:
    """A run folder and its lives."""

    folder: RunFolder

    @classmethod
    def prepare(cls, root: Path, *overrides: str) -> "LightRun":
        """A new run folder below root."""
        config = load_config(RECIPE, [f"run.folder={root}", "run.name=light", *LIGHT, *overrides])
        del config.steps[1].rl.stages[2:]
        folder = RunFolder.create(root / "light", "light")
        save_resolved(config, folder.config)
        return cls(folder)

    def live(
        self, *deaths: str, promote_after: int = 0, scale: Mapping[int, int] | None = None, step_s: float = 0
    ) -> int:
        """One life; returns its exit code, -9 for a killed one.

        deaths: failpoints as `name:count:marker`; promote_after: an iteration after which a person promotes the stage;
        scale: engines that a person wants, by the iteration in whose rollout they say so; step_s: of an engine step.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        wishes = Life(str(self.folder.root), ",".join(deaths), promote_after, dict(scale or {}), step_s)
        process: ForkServerProcess = context.Process(target=live, args=(wishes,))
        process.start()
        process.join(LIFE_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"the life did not end within {LIFE_S:.0f} s: {self.last_words()}")
        return process.exitcode

    def last_words(self) -> str:
        """The end of the controller's log."""
        log = self.folder.logs / "controller.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-12:]) if log.exists() else "(no log)"

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """Rows of one of the folder's JSON-lines files."""
        return [json.loads(line) for line in path.read_text().splitlines()]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of a kind."""
        return [row for row in self.rows(self.folder.events) if row["kind"] == kind]


@dataclass(frozen=True)
class Life:
    """What the child is told."""

    root: str
    deaths: str
    promote_after: int
    scale: dict[int, int]
    step_s: float


def live(life: Life) -> None:
    """The child: runs the folder to its end, or to the failpoint."""
    from tests.integration.light_controller import Person, run_light

    if life.deaths:
        os.environ[failpoints.VARIABLE] = life.deaths
    os.environ["LIGHT_STEP_S"] = str(life.step_s)
    person = Person(life.promote_after, life.scale)
    raise SystemExit(asyncio.run(run_light(Path(life.root), person)))


def write_light_report(config: Config, folder: RunFolder, *more: Any) -> None:
    """A summary without the plot, which takes longer than the run."""
    write_atomically(folder.summary, "{}")
