"""Trained tokens per second of whole training steps, against TRL's GRPOTrainer: `make bench BENCH=e2e`.

Both sides (e2e_ours.py, trl_side.py) stay up and take turns in blocks of steps on the same plan (e2e_plan.py). The
figure of a side is the response tokens in its trained batches over the wall seconds of its steps. Targets: ratio 1.5 at
the demo's lengths, 5 on the long tail. Prints one JSON line, with the demo's ratio in front and both in its details;
takes about twenty minutes on two cores, most of it TRL's on the long tail.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crescendo.common.config.schema import ScratchModelConfig
from crescendo.common.models.scratch import write_scratch_model
from tests.bench.e2e_ours import MAX_POSITIONS, Turn, our_side
from tests.bench.e2e_plan import MIXES, PADDING, VOCABULARY, Plan, make_plan
from tests.bench.harness import Measured, median, progress, report, rounded

TRL_SIDE = Path(__file__).with_name("trl_side.py")
MEASURED = ("demo", "long_tail")
MICRO_BATCH = 64  # rows of TRL's backward pass: faster than 16, 32 and 256 on two cores
STOP_S = 60.0
COMPARED = ("demo", "long_tail")


class TrlSide:
    """The other process and its pipes."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def take_turn(self, steps: int) -> Turn:
        """Runs steps and returns what they took; raises RuntimeError when the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(steps, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"TRL's side ended with code {self._process.wait(STOP_S)}; its output is above")
        return Turn(**json.loads(line))


@contextmanager
def trl_side(plan: Plan, scratch: Path, arguments: argparse.Namespace) -> Iterator[TrlSide]:
    """Starts TRL on the same shape of model; ends it."""
    model, steps = scratch / "model", scratch / "plan.json"
    shape = ScratchModelConfig(vocabulary=VOCABULARY, padding=PADDING, max_positions=MAX_POSITIONS)
    write_scratch_model(model, shape, seed=0)
    steps.write_text(json.dumps(plan.as_json()))
    threads = str(arguments.threads)
    command = [arguments.trl_python, TRL_SIDE, "--model", model, "--plan", steps, "--output", scratch / "trl"]
    options = ["--threads", threads, "--micro-batch", str(arguments.micro_batch)]
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    # As on our side; on cores that other processes use too, spinning threads would cost TRL several times as much.
    environment |= {"GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        [*map(str, command), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )
    try:
        yield TrlSide(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def rate(turns: list[Turn]) -> float:
    """Trained tokens over wall seconds, of all steps."""
    return sum(sum(turn.tokens) for turn in turns) / sum(sum(turn.seconds) for turn in turns)


def facts(turns: list[Turn]) -> dict[str, Any]:
    """What a side did."""
    seconds = [one for turn in turns for one in turn.seconds]
    tokens = [one for turn in turns for one in turn.tokens]
    return {
        "tokens_per_s": rounded(rate(turns)),
        "median_step_s": rounded(median(seconds)),
        "tokens_per_step": rounded(sum(tokens) / len(tokens)),
        "steps": len(seconds),
    }


async def measure(mix: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One mix: warm-up, then blocks of steps in turns."""
    spans = -(-MIXES[mix].max_response_tokens // MIXES[mix].token_budget) if MIXES[mix].token_budget else 0
    ours_warmup, trl_warmup = 2 + 2 * spans, 2  # ours: until as many partial rollouts end as begin
    plan = make_plan(mix, arguments.steps + trl_warmup)
    ours: list[Turn] = []
    theirs: list[Turn] = []
    with (
        tempfile.TemporaryDirectory(prefix="crescendo-bench-") as scratch,
        trl_side(plan, Path(scratch), arguments) as trl,
    ):
        async with our_side(plan, Path(scratch), arguments.threads, arguments.engines) as run:
            await run.take_turn(ours_warmup)
            await asyncio.to_thread(trl.take_turn, trl_warmup)
            for done in range(0, arguments.steps, arguments.block):
                block = min(arguments.block, arguments.steps - done)
                ours.append(await run.take_turn(block))
                theirs.append(await asyncio.to_thread(trl.take_turn, block))
                progress(f"{mix}: {done + block} steps, ours {rate(ours):.0f}, TRL {rate(theirs):.0f} tokens/s")
    return {"ours": facts(ours), "trl": facts(theirs), "ratio": rounded(rate(ours) / rate(theirs))}


def details(found: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The mixes and the settings that matter."""
    names = ("threads", "engines", "micro_batch", "block")
    return {"mixes": found, "settings": {name: getattr(arguments, name) for name in names}}


def main() -> None:
    """Measures the mixes and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mix", choices=[*COMPARED, "all"], default="all")
    parser.add_argument("--steps", type=int, default=20, help="steady steps a side and mix")
    parser.add_argument("--block", type=int, default=5, help="steps a turn")
    parser.add_argument("--threads", type=int, default=2, help="compute threads of either side")
    parser.add_argument("--engines", type=int, default=2, help="of ours; they share the threads")
    parser.add_argument("--micro-batch", type=int, default=MICRO_BATCH, help="of TRL: rows of a backward pass")
    parser.add_argument("--trl-python", type=Path, default=Path(".venv-trl/bin/python"))
    arguments = parser.parse_args()
    if not arguments.trl_python.exists():
        sys.exit(f"{arguments.trl_python} is not there; `make bench BENCH=e2e` makes TRL's environment")
    mixes = list(COMPARED) if arguments.mix == "all" else [arguments.mix]
    found = {mix: asyncio.run(measure(mix, arguments)) for mix in mixes}
    first = found[mixes[0]]
    rates = (first["ours"]["tokens_per_s"], first["trl"]["tokens_per_s"])
    report(Measured("e2e", *rates, "trained tokens/s", details(found, arguments)))


if __name__ == "__main__":
    main()
