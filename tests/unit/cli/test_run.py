"""`crescendo run` and its relatives against a scripted controller, as processes: ends, signals, orphans, bad input."""

import contextlib
import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from crescendo.cli.main import main

FAKES = Path(__file__).parents[2] / "fakes"
LIMIT_S = 60
RECIPE = """
run: {name: try, folder: runs}
model: {source: scratch, scratch: {vocabulary: "0123456789?=#.$", max_positions: 128}}
data:
  train: {name: task, path: clock_sum}
  validation: {name: task, path: clock_sum}
  max_prompt_tokens: 32
rewards: {chains: {math: [{scorer: exact_match}]}}
steps:
  - {kind: rl, rl: {stages: [{name: short, max_response_tokens: 32}]}}
console: {enabled: false}
deadlines: {start_s: 20}
"""


class Workplace:
    """A folder with a recipe, and the command with the scripted controller in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started: list[subprocess.Popen[str]] = []
        (root / "recipe.yaml").write_text(RECIPE)

    @property
    def run_folder(self) -> Path:
        return self.root / "runs" / "try"

    def start(self, *arguments: str, fake: str = "done", tick_s: float = 0.01) -> "subprocess.Popen[str]":
        environment = {
            **os.environ,
            "PYTHONPATH": str(FAKES),
            "CRESCENDO_FAKE": fake,
            "CRESCENDO_FAKE_TICK_S": str(tick_s),
            "COLUMNS": "200",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "fake_crescendo", *arguments],
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def close(self) -> None:
        """Ends what a failed test left."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=LIMIT_S)

    def call(self, *arguments: str, fake: str = "done") -> tuple[int, str]:
        process = self.start(*arguments, fake=fake)
        text, _ = process.communicate(timeout=LIMIT_S)
        return process.returncode, text

    def call_here(self, *arguments: str) -> tuple[int, str]:
        """The command in this process: quick, for what starts no process."""
        with contextlib.chdir(self.root), io.StringIO() as text:
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                code = main(arguments)
            return code, text.getvalue()

    def verbs(self) -> list[dict[str, object]]:
        path = self.run_folder / "verbs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.05)

    def wait_for_iterations(self) -> None:
        metrics = self.run_folder / "metrics.jsonl"
        self.wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)

    def assert_nothing_runs(self) -> None:
        """No process of the run is left: none in its folder, none that the controller left behind."""
        for process in psutil.process_iter(["cmdline"]):
            assert str(self.run_folder) not in " ".join(process.info["cmdline"] or ())
            try:
                assert process.cwd() != str(self.root), process
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        orphan = int((self.run_folder / "orphan.pid").read_text())
        assert not psutil.pid_exists(orphan)


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    made = Workplace(tmp_path)
    yield made
    made.close()


def test_a_run_from_start_to_table(workplace: Workplace) -> None:
    code, text = workplace.call("run", "recipe.yaml", "--plain", "--set", "run.seed=4")
    assert code == 0, text
    assert re.search(r"rl iteration \d+/60  stage short", text)
    assert "short left by length_turn for medium" in text
    assert "93.0%" in text
    assert "crescendo console runs/try" in text
    assert "seed: 4" in (workplace.run_folder / "config.yaml").read_text()
    workplace.assert_nothing_runs()

    code, text = workplace.call_here("status", "try")
    assert (code, "93.0%" in text) == (0, True)
    code, text = workplace.call_here("resume", "runs/try", "--plain")
    assert (code, "there is nothing to resume" in text) == (0, True)
    code, text = workplace.call_here("run", "recipe.yaml")
    assert code == 2
    assert "holds a run already" in text
    assert "crescendo resume" in text


def test_a_failed_run_says_why_and_how_to_go_on(workplace: Workplace) -> None:
    code, text = workplace.call("run", "recipe.yaml", "--plain", fake="fail")
    assert code == 3
    assert "error: engine rollout-0 never became ready." in text
    assert "controller.log" in text
    assert "crescendo resume runs/try" in text
    workplace.assert_nothing_runs()


def test_a_killed_controller_is_reported_with_its_last_words(workplace: Workplace) -> None:
    code, text = workplace.call("run", "recipe.yaml", "--plain", fake="die")
    assert code == 75
    assert "Fatal: out of memory" in text
    assert "signal 9" in text
    workplace.assert_nothing_runs()
    code, text = workplace.call("resume", "--plain", fake="done")
    assert code == 0, text
    workplace.assert_nothing_runs()


def test_ctrl_c_stops_with_a_commit(workplace: Workplace) -> None:
    process = workplace.start("run", "recipe.yaml", "--plain", fake="endless", tick_s=0.05)
    workplace.wait_for_iterations()
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, text
    assert "press Ctrl-C again to end at once" in text
    assert "Continue it with: crescendo resume runs/try" in text
    assert workplace.verbs() == [{"verb": "stop", "commit": True}]
    workplace.assert_nothing_runs()


def test_ctrl_c_twice_ends_a_controller_that_does_not_listen(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRESCENDO_FAKE_KILL_GRACE_S", "0.5")
    process = workplace.start("run", "recipe.yaml", "--plain", fake="deaf", tick_s=0.05)
    workplace.wait_for_iterations()
    process.send_signal(signal.SIGINT)
    workplace.wait_for(lambda: len(workplace.verbs()) == 1)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, text
    assert "ending at once" in text
    workplace.assert_nothing_runs()


def test_a_killed_command_takes_the_controller_along(workplace: Workplace) -> None:
    process = workplace.start("run", "recipe.yaml", "--plain", fake="endless", tick_s=0.05)
    workplace.wait_for_iterations()
    controller = json.loads((workplace.run_folder / "control" / "controller.json").read_text())["pid"]
    process.kill()
    process.communicate(timeout=LIMIT_S)
    workplace.wait_for(lambda: not psutil.pid_exists(controller))
    psutil.Process(int((workplace.run_folder / "orphan.pid").read_text())).kill()


def test_a_controller_that_hangs_is_killed(workplace: Workplace) -> None:
    beat = ("--set", "deadlines.heartbeat_s=2")
    process = workplace.start("run", "recipe.yaml", "--plain", *beat, fake="endless", tick_s=0.05)
    workplace.wait_for_iterations()
    controller = json.loads((workplace.run_folder / "control" / "controller.json").read_text())["pid"]
    os.kill(controller, signal.SIGSTOP)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 75, text
    assert "the controller has not answered for" in text
    workplace.assert_nothing_runs()


def test_an_unattended_run_restarts_as_often_as_asked(workplace: Workplace) -> None:
    quick = ("--set", "recovery.backoff_s=0.1")
    code, text = workplace.call("run", "recipe.yaml", "--plain", "--restarts", "2", *quick, fake="die")
    assert code == 75
    assert [line[:14] for line in text.splitlines() if line.startswith("restart ")] == [
        "restart 1 of 2",
        "restart 2 of 2",
    ]
    workplace.assert_nothing_runs()
    code, text = workplace.call("run", "recipe.yaml", "--plain", "--resume", fake="done")
    assert code == 0, text


def test_what_cannot_pass_by_itself_and_ctrl_c_are_not_restarted(workplace: Workplace) -> None:
    code, text = workplace.call("run", "recipe.yaml", "--plain", "--restarts", "5", fake="fail")
    assert (code, "restart" in text) == (3, False)
    process = workplace.start("run", "recipe.yaml", "--plain", "--restarts", "5", "--name", "other", fake="endless")
    workplace.wait_for(lambda: (workplace.root / "runs" / "other" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, "restart " in text) == (130, False)


def test_a_controller_that_never_serves_is_given_up(workplace: Workplace) -> None:
    code, text = workplace.call("run", "recipe.yaml", "--plain", "--set", "deadlines.start_s=1", fake="silent")
    assert code == 1
    assert "the controller did not serve within 1 s." in text
    workplace.assert_nothing_runs()


def test_verbs_status_and_watch(workplace: Workplace) -> None:
    process = workplace.start("run", "recipe.yaml", "--plain", fake="endless", tick_s=0.2)
    workplace.wait_for_iterations()
    watching = workplace.start("watch", "try", "--plain")
    assert watching.stdout is not None
    assert "iteration" in watching.stdout.readline()
    assert workplace.call_here("pause")[0] == 0
    code, text = workplace.call_here("status")
    assert (code, "paused" in text) == (0, True)
    assert workplace.call_here("unpause", "runs/try")[0] == 0
    code, text = workplace.call_here("promote", "--stage", "medium")
    assert (code, "enters stage medium" in text) == (0, True)
    code, text = workplace.call_here("scale", "--engines", "3")
    assert (code, "with 3 engines" in text) == (0, True)
    code, text = workplace.call_here("resume", "try")
    assert (code, "is running already" in text) == (2, True)
    assert workplace.call_here("stop", "--no-commit")[0] == 0
    text, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, text
    seen, _ = watching.communicate(timeout=LIMIT_S)
    assert watching.returncode == 0, seen
    assert "short left by manual for medium" in seen
    assert [row["verb"] for row in workplace.verbs()] == ["pause", "resume", "promote", "scale", "stop"]
    assert workplace.verbs()[-1]["commit"] is False
    code, text = workplace.call_here("pause")
    assert (code, "has no living controller" in text) == (2, True)
    workplace.assert_nothing_runs()


def test_the_console_comes_and_goes_with_the_run(workplace: Workplace) -> None:
    process = workplace.start("run", "recipe.yaml", "--plain", "--set", "console.enabled=true", fake="endless")
    ready = workplace.run_folder / "control" / "console.ready"
    workplace.wait_for(ready.exists)
    assert ready.read_text().startswith("http://127.0.0.1:")
    assert ready.stat().st_mode & 0o077 == 0
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=LIMIT_S)
    assert ready.read_text() in text
    workplace.assert_nothing_runs()


def test_a_terminal_gets_the_live_view(workplace: Workplace) -> None:
    parent, child = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(FAKES), "CRESCENDO_FAKE_TICK_S": "0.02", "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-m", "fake_crescendo", "run", "recipe.yaml"],
        cwd=workplace.root, env=environment, stdin=child, stdout=child, stderr=child,
    ) as process:  # fmt: skip
        os.close(child)
        seen = b""
        try:
            while chunk := os.read(parent, 65536):
                seen += chunk
        except OSError:
            pass  # the child's end of the terminal is closed
        finally:
            os.close(parent)
        assert process.wait(LIMIT_S) == 0
    text = seen.decode(errors="replace")
    assert "╭" in text
    assert "tokens/s" in text
    assert "93.0%" in text


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        (["run.sede=1"], 2, "Did you mean seed?"),
        (["rollout.num_engines=two"], 2, "rollout.num_engines is 'two' (str); it must be a whole number"),
        (["steps.0.rl.stages.0.token_budget=64"], 2, "it must be at most max_response_tokens, 32"),
        (["buffer.name=external"], 2, "an external buffer needs a redis://"),
    ],
)
def test_bad_input_leaves_nothing_behind(workplace: Workplace, changes: list[str], code: int, said: str) -> None:
    arguments = [part for change in changes for part in ("--set", change)]
    found, text = workplace.call_here("run", "recipe.yaml", *arguments)
    assert found == code
    assert said in text
    assert "Traceback" not in text
    assert sorted(path.name for path in workplace.root.iterdir()) == ["recipe.yaml"]


def test_a_console_port_in_use_stops_before_anything_is_made(workplace: Workplace) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        arguments = ["--set", "console.enabled=true", "--set", f"console.port={number}"]
        code, text = workplace.call_here("run", "recipe.yaml", *arguments)
    assert code == 3
    assert f"port {number} on 127.0.0.1 cannot be had: Address already in use." in text
    assert not workplace.run_folder.exists()


def test_a_run_folder_of_another_version_is_left_alone(workplace: Workplace) -> None:
    workplace.run_folder.mkdir(parents=True)
    identity = workplace.run_folder / "run.json"
    identity.write_text('{"format_version": 99, "run_id": "old"}')
    for command in ("resume", "status", "pause", "console"):
        code, text = workplace.call_here(command, "runs/try")
        assert (code, "has run-folder format 99" in text) == (2, True), text
    assert list(workplace.run_folder.iterdir()) == [identity]


@pytest.mark.parametrize("given", ["nowhere", "recipe.yaml", ""])
def test_a_run_that_is_none_is_named(workplace: Workplace, given: str) -> None:
    code, text = workplace.call_here("status", given)
    assert code == 2
    assert "Traceback" not in text
    assert "fix:" in text
