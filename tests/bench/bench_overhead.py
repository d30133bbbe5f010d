"""What controller and buffer add to an iteration at the sizes of a real run, by simulation.

`make bench BENCH=overhead` prints one JSON line. The controller's loop, Valkey, the rollout services with their claims
and flushes, the redo log, commits and the archiver are the real ones, each in its process; engines and trainer only
take time (overhead_rig.py). That time is compressed, so everything is asked of the buffer several times as fast as in
reality. `ours` is the wall time of an iteration less what engines and trainer slept: the seconds that sampling, claims,
flushes, scoring, switches, recording, reading the batch, publishing and committing add. `baseline` is how long such
an iteration takes in reality, and `ratio` the share. The target is 0.01.

The sizes and times, by --size:

    deepscaler  its 16K stage: 128 prompts, 16 samples each, 5,500 tokens in the mean (where it ends, from 3,500), 32
                GPUs. The whole run took 3,800 A100 hours for 1,750 steps (rllm's README), so 2.17 GPU hours a step:
                244 s on 32 GPUs. This stage's steps take longer than the mean, so the share is overestimated.
    r1-zero     8,192 responses a rollout, split into 16 steps, ~198 h for 10,400 steps on 512 H800 (the paper's
                appendix, read in a copy): 1,097 s. k1.5 publishes none of its own but the switches: less than
                60 s one way and about 10 s back. Its responses' mean length isn't published; 8,000 tokens are taken.

`phases_s` tells where the seconds are; what lies between phases is in `ours` alone. `cpu_s` is the processor time of
controller and Valkey by iteration, most of it spent beside generation (scoring reads and decodes every response), so
it is more than what they add. Checkpoints are of a toy's size: writing gigabytes is the trainer's work.
"""

import argparse
import asyncio
import itertools
import multiprocessing
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from crescendo.common.config import load_config, save_resolved
from crescendo.common.runfolder import RunFolder
from crescendo.common.telemetry import read_jsonl
from crescendo.controller import app
from crescendo.controller.launch import fleet
from tests.bench.harness import Measured, progress, report
from tests.bench.overhead_rig import PHASES, NoCluster, Rig, TimedBoard

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart" / "recipe.yaml"
MODULE = "tests.bench.overhead_rig"
ENGINES = 2
STEP_TOKENS = 64
LONGEST = 4.0  # of the mean: the longest of thousands of responses, which the engines wait for
POLL_S = 0.1
TRAIN_SHARE = 0.1  # of the simulated time; how it is split does not matter to what is measured


@dataclass(frozen=True)
class Size:
    """An iteration of a real run. real_s: how long it takes there."""

    prompts: int
    samples: int
    mean_tokens: int
    context: int
    real_s: float


SIZES = {
    "deepscaler": Size(128, 16, 5_500, 16_384, 3_800 * 3_600 / 1_750 / 32),
    "r1-zero": Size(512, 16, 8_000, 32_768, 198 * 3_600 / 10_400 * 16),
    "tiny": Size(8, 4, 200, 1_024, 10.0),
}


def prepare(root: Path, size: Size, arguments: argparse.Namespace) -> RunFolder:
    """A run folder of one stage, and the plan of its stand-ins."""
    config = load_config(
        RECIPE,
        [
            f"run.folder={root}", "run.name=overhead", "rollout.engine=scripted", f"rollout.num_engines={ENGINES}",
            f"rollout.max_concurrency={-(-size.prompts * size.samples // ENGINES)}",
            f"data.train.num_prompts={4 * size.prompts}", "data.validation.num_prompts=4",
            f"model.scratch.max_positions={2 * size.context}",
            f"archive.enabled={str(arguments.archive).lower()}", "steps.1.rl.repetition.enabled=false",
            "steps.1.rl.validation.num_prompts=2", "steps.1.rl.validation.every_iterations=1000",
            "steps.1.rl.checkpoints.every_iterations=1",
            *(f"steps.1.rl.stages.{n}.max_response_tokens={size.context}" for n in range(3)),
            "steps.1.rl.stages.0.token_budget=0",
            f"steps.1.rl.stages.0.prompts_per_iteration={size.prompts}",
            f"steps.1.rl.stages.0.samples_per_prompt={size.samples}",
            "steps.1.rl.stages.0.gate.name=step", f"steps.1.rl.stages.0.gate.iterations={arguments.iterations + 1}",
            "steps.1.rl.stages.0.gate.min_iterations=0",
        ],
    )  # fmt: skip
    del config.steps[0], config.steps[0].rl.stages[1:]
    folder = RunFolder.create(root / "overhead", "overhead")
    save_resolved(config, folder.config)
    simulated_s = size.real_s / arguments.compress
    num_steps = LONGEST * size.mean_tokens / STEP_TOKENS
    step_s = (1 - TRAIN_SHARE) * simulated_s / num_steps
    Rig(size.mean_tokens, STEP_TOKENS, step_s, TRAIN_SHARE * simulated_s).write(folder.root)
    return folder


def run(folder: RunFolder) -> list[dict[str, float]]:
    """The real controller, to the run's end, in a process of its own: it takes its output for its log.

    Returns the processor time that it and Valkey had used at the end of each iteration.
    """
    process = multiprocessing.get_context("spawn").Process(target=_control, args=(folder,))
    process.start()
    found: list[dict[str, float]] = []
    while process.is_alive():
        rows = sum(row["iteration"] >= 1 and row["stage"] != "end" for row in read_jsonl(folder.metrics))
        if rows > len(found):
            found.append(_cpu_s(process.pid))
        process.join(POLL_S)
    if process.exitcode:
        raise SystemExit(f"the run ended with {process.exitcode}: {_last_event(folder)}")
    return found


def _last_event(folder: RunFolder) -> str:
    rows = list(read_jsonl(folder.events))
    return str(rows[-1]["message"]) if rows else (folder.logs / "controller.log").read_text()[-2000:]


def _cpu_s(pid: int | None) -> dict[str, float]:
    """Seconds of processor time so far: of the controller, and of the Valkey that it started."""
    controller = psutil.Process(pid)
    processes = {"controller": controller, **{one.name(): one for one in controller.children()}}
    times = {name: one.cpu_times() for name, one in processes.items()}
    return {name: time.user + time.system for name, time in times.items() if name in ("controller", "valkey-server")}


def _control(folder: RunFolder) -> None:
    modules = {
        **dict.fromkeys(("trainer", "rollout", "reward", "executor"), MODULE),
        "archiver": "crescendo.buffer.archive",
    }
    with (
        mock.patch.object(fleet, "Cluster", NoCluster),
        mock.patch.object(fleet, "LOCAL_MODULES", modules),
        mock.patch.object(app, "write_report"),
        mock.patch.object(app, "Board", TimedBoard),
    ):
        raise SystemExit(asyncio.run(app.run_controller(folder.root)))


def overheads(folder: RunFolder) -> tuple[list[float], list[dict[str, Any]]]:
    """Seconds that each iteration but the first took beyond what engines and trainer slept; and its metrics."""
    rows = [row for row in read_jsonl(folder.metrics) if row.get("iteration", 0) >= 1 and row["stage"] != "end"]
    pairs = itertools.pairwise(float(row["unix_seconds"]) for row in rows)
    return [_added(folder, begin, end) for begin, end in pairs], rows[1:]


def by_phase(folder: RunFolder) -> dict[str, float]:
    """Seconds that a phase added, in the median over iterations but the first."""
    found: dict[str, dict[int, float]] = {}
    for row in read_jsonl(folder.root / PHASES):
        if row["iteration"] > 1 and row["name"] != "validate":
            of_phase = found.setdefault(row["name"], {})
            added = _added(folder, row["begin"], row["end"])
            of_phase[row["iteration"]] = of_phase.get(row["iteration"], 0.0) + added
    return {name: round(statistics.median(values.values()), 3) for name, values in found.items()}


def _added(folder: RunFolder, begin: float, end: float) -> float:
    """Seconds of a span in which neither engines nor trainer slept."""
    engines = [_slept(folder, f"rollout-{index}", begin, end) for index in range(ENGINES)]
    return end - begin - max(engines) - _slept(folder, "trainer-0", begin, end)


def _slept(folder: RunFolder, worker: str, begin: float, end: float) -> float:
    rows = read_jsonl(folder.root / f"slept-{worker}.jsonl")
    return sum(float(row["seconds"]) for row in rows if begin < float(row["at"]) <= end)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="deepscaler")
    parser.add_argument("--iterations", type=int, default=3, help="that count; one before warms up")
    parser.add_argument("--compress", type=float, default=6.0, help="how much quicker than in reality phases pass")
    parser.add_argument("--archive", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--folder", type=Path, help="keeps the run folder here, to look at")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    with tempfile.TemporaryDirectory() as scratch:
        folder = prepare(arguments.folder or Path(scratch), size, arguments)
        progress(f"{arguments.iterations + 1} iterations of about {size.real_s / arguments.compress:.0f} s")
        cpu = run(folder)
        found, rows = overheads(folder)
        phases = by_phase(folder)
        tokens = statistics.mean(float(row["trained_tokens"]) for row in rows)
    details = {
        "size": arguments.size,
        "target": 0.01,
        "held": int(statistics.median(found) <= 0.01 * size.real_s),
        "overhead_s": [round(value, 2) for value in found],
        "phases_s": phases,
        "trajectories": size.prompts * size.samples,
        "tokens_an_iteration": round(tokens),
        "cpu_s": {
            name: [round(late[name] - early[name], 2) for early, late in itertools.pairwise(cpu)] for name in cpu[0]
        },
        "compress": arguments.compress,
        "archive": arguments.archive,
    }
    report(Measured("overhead", statistics.median(found), size.real_s, "s an iteration", details))


if __name__ == "__main__":
    main()
