"""Starts the `crescendo` command on a small recipe and looks at its run folder, as a user's script would."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart" / "recipe.yaml"

# Two short stages on the real engines; gates by count, because what is tested here is survival, not learning.
SMALL = (
    "steps.0.sft.steps=20",
    "steps.1.rl.validation.num_prompts=8",
    "steps.1.rl.validation.every_iterations=2",
    "steps.1.rl.checkpoints.every_iterations=2",
    *(f"steps.1.rl.stages.{n}.prompts_per_iteration=4" for n in range(3)),
    *(f"steps.1.rl.stages.{n}.samples_per_prompt=4" for n in range(3)),
    *(f"steps.1.rl.stages.{n}.gate.name=step" for n in range(3)),
    *(f"steps.1.rl.stages.{n}.gate.iterations=3" for n in range(3)),
    *(f"steps.1.rl.stages.{n}.gate.min_iterations=0" for n in range(3)),
)
WAIT_S = 150.0


class RunProcess:
    """One `crescendo run` or `resume` and its folder."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.folder = folder
        self.output = folder.parent / f"{folder.name}.{time.monotonic_ns()}.out"
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("crescendo")), *arguments, "--plain", "--no-console"],
                cwd=folder.parents[1], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self._seen: set[int] = set()

    @classmethod
    def start(cls, scratch: Path, name: str, *overrides: str) -> "RunProcess":
        """A new run in scratch/runs/name."""
        (scratch / "runs").mkdir(exist_ok=True)
        settings = [part for override in (*SMALL, *overrides) for part in ("--set", override)]
        return cls(scratch / "runs" / name, ["run", str(RECIPE), "--name", name, *settings])

    @classmethod
    def resume(cls, folder: Path) -> "RunProcess":
        """The same run again."""
        return cls(folder, ["resume", str(folder)])

    @property
    def text(self) -> str:
        """What the command printed."""
        return self.output.read_text(errors="replace")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of a JSON-lines file of the run folder."""
        path = self.folder / name
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def iterations(self) -> list[int]:
        """Iterations with a metrics row, in order."""
        return [int(row["iteration"]) for row in self.rows("metrics.jsonl") if "iteration_seconds" in row]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of a kind."""
        return [row for row in self.rows("events.jsonl") if row["kind"] == kind]

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        """Waits until a condition holds; fails with the output when the run ends or time is up."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            self._remember()
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"never saw {what}; the command printed:\n{self.text}")
            time.sleep(0.05)

    def wait(self, deadline_s: float = WAIT_S) -> int:
        """Waits for the command's end; returns its exit code."""
        deadline = time.monotonic() + deadline_s
        while self.process.poll() is None:
            self._remember()
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"the command did not end; it printed:\n{self.text}")
            time.sleep(0.1)
        return int(self.process.returncode)

    def worker_pid(self, worker_id: str) -> int:
        """Process id of a worker, from the controller's log."""
        found = [
            row["message"].rsplit("(pid ", 1)[1].rstrip(")")
            for row in self.rows("logs/controller.log")
            if str(row.get("message", "")).startswith(f"{worker_id} is ready")
        ]
        return int(found[-1])

    def descendant(self, name: str) -> int:
        """Process id of the one descendant of this name."""
        found = [one for one in psutil.Process(self.process.pid).children(recursive=True) if one.name() == name]
        return int(found[-1].pid)

    def controller_pid(self) -> int:
        """Process id of the living controller."""
        return int(json.loads((self.folder / "control" / "controller.json").read_text())["pid"])

    def verb(self, name: str) -> None:
        """Another terminal's `crescendo <name> RUN`."""
        command = [str(Path(sys.executable).with_name("crescendo")), name, str(self.folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.kill(self.process.pid, signal.SIGINT)

    def left_behind(self) -> list[str]:
        """Processes that this command started and that still live."""
        deadline = time.monotonic() + 10
        while (alive := list(self._alive())) and time.monotonic() < deadline:
            time.sleep(0.2)
        return alive

    def shared_memory(self) -> list[str]:
        """Shared-memory files of the run."""
        run_id = json.loads((self.folder / "run.json").read_text())["run_id"]
        return [path.name for path in Path("/dev/shm").glob(f"*{run_id}*")]

    def _remember(self) -> None:
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self._seen |= {child.pid for child in children}

    def _alive(self) -> Iterator[str]:
        for pid in self._seen:
            try:
                process = psutil.Process(pid)
                command = " ".join(process.cmdline())
                # A process id may have been given to somebody else meanwhile.
                if process.status() != psutil.STATUS_ZOMBIE and ("ray" in command or "crescendo" in command):
                    yield f"{pid} {command[:120]}"
            except psutil.Error:
                continue


def assert_no_process(run: RunProcess) -> None:
    """None of its processes lives."""
    assert run.left_behind() == [], run.left_behind()


def assert_clean(run: RunProcess) -> None:
    """It left neither processes nor shared memory."""
    assert_no_process(run)
    assert run.shared_memory() == [], run.shared_memory()


def assert_finished(run: RunProcess, iterations: int = 9, first_left_by: str = "step") -> None:
    """It ended well, with all that it is to leave. first_left_by: how its first stage ended."""
    assert run.wait() == 0, run.text
    summary = json.loads((run.folder / "summary.json").read_text())
    assert [stage["left_by"] for stage in summary["stages"]] == [first_left_by, "step", "step"], summary
    assert summary["accuracy"]["final"] is not None, summary
    assert summary["checks"]["logprob_max_diff"] <= 1e-3, summary
    assert sorted(set(run.iterations())) == list(range(1, iterations + 1)), run.iterations()
    assert (run.folder / "export" / "model.safetensors").exists()
    assert_clean(run)
