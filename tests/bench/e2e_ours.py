"""Our side of the e2e benchmark: the product's own run, its iterations let through in turns.

A run folder and a controller session as `crescendo run` makes them, in the benchmark's process, with two
differences: engines are started with forced lengths, and the run stands still between the turns. Everything else is
real: embedded Valkey, Ray, a vLLM engine, a Megatron-Core trainer and the reward service as processes, redo log,
lease, attested weights, scoring. What is switched off is what TRL's side does not do either: validation and
checkpoints while the clock runs.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from crescendo.common.config import load_config, save_resolved
from crescendo.common.config.rl import StageConfig
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import ServiceSpec
from crescendo.controller.launch import Fleet
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.session import Session
from tests.bench.e2e_plan import MIXES, PADDING, VOCABULARY, Plan

NEVER = 1_000_000
MAX_POSITIONS = 2176


@dataclass
class Turn:
    """Iterations of one turn: wall seconds and trained response tokens of each."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class PacedControl(Control):
    """Lets so many iterations through as a turn grants, and then stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.board: Board | None = None
        self._left = 0
        self._began = 0.0
        self._turn = Turn()
        self._granted = asyncio.Event()
        self._done = asyncio.Event()

    async def take_turn(self, iterations: int) -> Turn:
        """Runs iterations and returns what they took."""
        self._left, self._turn = iterations, Turn()
        self._done.clear()
        self._granted.set()
        await self._done.wait()
        return self._turn

    async def wait_while_paused(self) -> None:
        """Called by the loop before each iteration: ends one step's clock and starts the next's."""
        if self._left and self._began and self.board is not None:
            self._turn.seconds.append(time.perf_counter() - self._began)
            self._turn.tokens.append(int(self.board.rows[-1].values.get("trained_tokens", 0)))
            self._left -= 1
        if self._left == 0:
            self._began = 0.0
            self._done.set()
            self._granted.clear()
            await self._granted.wait()
        self._began = time.perf_counter()


class ForcedFleet(Fleet):
    """Starts engines whose responses have given lengths."""

    forced_lengths: Path

    def _spec(self, role: str, index: int, **fields: Any) -> ServiceSpec:
        if role == "rollout":
            fields["options"] = {**fields["options"], "forced_lengths": str(self.forced_lengths)}
        return super()._spec(role, index, **fields)


def recipe(plan: Plan, folder: Path, threads: int, num_engines: int) -> dict[str, Any]:
    """The run file: GRPO on clock_sum in one stage that nobody leaves; engines share the threads."""
    # One engine may take all there is; several must leave each other their part.
    in_flight = MIXES[plan.mix].in_flight // num_engines if num_engines > 1 else 512
    task = {"name": "task", "path": "clock_sum", "domain": "clock"}
    return {
        "run": {"name": "bench", "folder": str(folder)},
        "model": {
            "source": "scratch",
            "scratch": {"vocabulary": VOCABULARY, "padding": PADDING, "max_positions": MAX_POSITIONS},
        },
        "data": {
            "train": {**task, "num_prompts": 4096},
            "validation": {**task, "num_prompts": 16, "seed": 1},
            "chat_template": False,
            "max_prompt_tokens": 64,
        },
        "rewards": {
            "chains": {"clock": [{"scorer": "exact_match", "options": {"marker": "#", "strip": "$"}}]},
            # An untrained model answers nothing right; the length reward gives every sample an advantage, so that
            # none is left out of training.
            "group": [{"scorer": "length_k15", "weight": 1.0}],
        },
        "rollout": {
            "num_engines": num_engines,
            "threads": max(1, threads // num_engines),
            "max_concurrency": in_flight,
        },
        "trainer": {"threads": threads},
        "console": {"enabled": False},
        "steps": [{"kind": "rl", "rl": _reinforcement(plan)}],
    }


def _reinforcement(plan: Plan) -> dict[str, Any]:
    mix = MIXES[plan.mix]
    spans = -(-mix.max_response_tokens // mix.token_budget) + 1 if mix.token_budget else 1
    return {
        "algorithm": {"name": "grpo", "reset_optimizer": False},
        "learning_rate": {"peak": 1e-5},
        "stages": [
            {
                "name": "bench",
                "max_response_tokens": plan.max_response_tokens,
                "token_budget": mix.token_budget,
                "prompts_per_iteration": len(plan.steps[0].prompts),
                "samples_per_prompt": plan.samples_per_prompt,
                "gate": {"name": "manual"},
                "max_iterations": NEVER,
            }
        ],
        "partial": {"max_spans": spans},
        "validation": {"every_iterations": NEVER, "num_prompts": 16},
        "checkpoints": {"every_iterations": NEVER},
    }


@dataclass(frozen=True)
class OurSide:
    """A run that stands still between turns. stage: its one stage; changes hold from the next iteration on."""

    control: PacedControl
    board: Board
    stage: StageConfig
    session: "asyncio.Task[None]"

    async def take_turn(self, iterations: int) -> Turn:
        """Runs iterations and returns what they took; raises what ended the run."""
        turn = asyncio.create_task(self.control.take_turn(iterations))
        await asyncio.wait({self.session, turn}, return_when=asyncio.FIRST_COMPLETED)
        if not turn.done():
            turn.cancel()
            self.session.result()
            raise RuntimeError("the run ended by itself")
        return turn.result()


@asynccontextmanager
async def our_side(plan: Plan, scratch: Path, threads: int, num_engines: int = 1) -> AsyncIterator[OurSide]:
    """Starts the run and lets one iteration through; ends every process."""
    source = scratch / "recipe.yaml"
    source.write_text(yaml.safe_dump(recipe(plan, scratch / "runs", threads, num_engines)))
    config = load_config(source)
    folder = RunFolder.create(Path(config.run.folder) / config.run.name, config.run.name)
    save_resolved(config, folder.config)
    control, board = PacedControl(), Board(folder, config.run.name)
    control.board = board
    fleet = ForcedFleet(config, folder, uses_gpu=False)
    fleet.forced_lengths = scratch / "lengths.json"
    fleet.forced_lengths.write_text(json.dumps([step.lengths for step in plan.steps]))
    session = asyncio.create_task(Session(config, folder, board, control, fleet).execute())
    side = OurSide(control, board, config.steps[0].rl.stages[0], session)
    try:
        await side.take_turn(1)
        yield side
    finally:
        control.stop(commit=False)
        session.cancel()
        await asyncio.gather(session, return_exceptions=True)
        board.close()
