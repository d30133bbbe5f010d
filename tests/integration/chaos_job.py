"""The job that fault campaigns run in tests and benches: the quick start's model, real engines, small iterations.

Gates by count, because what is tested is survival, not learning; the first goes back to its best checkpoint, so that
faults meet rollbacks too. Sampling by epochs, so that the audit can count prompts. Short deadlines: a stopped process
is dead after HEARTBEAT_S.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.run_process import RECIPE

HEARTBEAT_S = 15
ITERATIONS = 14  # of each of the three stages
_STAGE = {
    "prompts_per_iteration": 8,
    "samples_per_prompt": 8,
    "gate.name": "step",
    "gate.iterations": ITERATIONS,
    "gate.min_iterations": 0,
}
JOB = (
    "run.name=chaos",
    "steps.0.sft.steps=30",
    "steps.0.sft.commit_every_steps=10",
    "steps.1.rl.curriculum.order=epoch",
    "steps.1.rl.curriculum.prioritized.enabled=false",
    "steps.1.rl.validation.num_prompts=8",
    "steps.1.rl.validation.every_iterations=2",
    "steps.1.rl.checkpoints.every_iterations=3",
    "steps.1.rl.partial.max_spans=6",
    *(f"steps.1.rl.stages.{stage}.{name}={value}" for stage in range(3) for name, value in _STAGE.items()),
    "steps.1.rl.stages.0.gate.rollback=best",
    "rollout.flush_tokens=8",
    f"deadlines.heartbeat_s={HEARTBEAT_S}",
    "recovery.attempts=10",
    "archive.every_s=2",
)


def run_campaign(runs: Path, seed: int, num_faults: int, limit_s: float, *more: str) -> tuple[int, dict[str, Any], str]:
    """One `crescendo chaos` as a person starts it; returns its exit code, its JSON object and all that it said."""
    settings = [word for override in (*JOB, f"run.folder={runs}") for word in ("--set", override)]
    command = [str(Path(sys.executable).with_name("crescendo")), "chaos", str(RECIPE), *settings, *more]
    command += ["--faults", str(num_faults), "--seed", str(seed), "--run-limit", str(limit_s)]
    finished = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=2 * limit_s)
    said = finished.stderr + finished.stdout
    lines = [line for line in finished.stdout.splitlines() if line.startswith("{")]
    return finished.returncode, json.loads(lines[-1]) if lines else {}, said
