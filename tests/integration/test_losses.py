"""What a run loses in the middle and goes on without: Valkey, room in it, a controller that comes back from the dead.

On light runs (light_run.py): the real controller, buffer, rollout service and embedded Valkey, with stand-ins for the
heavy rest.
"""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import redis

from crescendo.buffer import EmbeddedServer
from crescendo.common.service import RunningService, ServiceSpec
from crescendo.controller import app
from crescendo.rollout.engine.base import Output
from crescendo.rollout.engine.scripted import ScriptedEngine
from crescendo.rollout.service import start as start_rollout
from tests.integration.light_run import _PRELOADED, Life, LightRun, live

pytestmark = pytest.mark.timeout(120)
LIMIT_S = 50.0
STEP_S = 0.01  # of the scripted engine: a rollout lasts long enough to be hit


def live_taking_over(life: Life) -> None:
    """A life that takes the folder from whoever has it."""
    app.run_controller = partial(app.run_controller, take_over=True)  # type: ignore[assignment]
    live(life)


def live_with_a_mortal_engine(life: Life) -> None:
    """A life whose second engine dies in the tenth step of a rollout; what replaces it does not."""
    from tests.integration import light_controller

    step = ScriptedEngine.step
    steps_left = [10]

    def mortal_step(engine: ScriptedEngine) -> list[Output]:
        rolls_out = any(not name.startswith("generate-") for name in engine._running)
        if "mortal" in engine._settings.options and rolls_out:
            steps_left[0] -= 1
            if not steps_left[0]:
                raise RuntimeError("the tenth step")
        return step(engine)

    async def start(spec: ServiceSpec) -> RunningService:
        options = {**spec.options, "scripted.step_s": str(STEP_S)}
        if spec.worker_id == "rollout-1" and spec.incarnation == 0:
            options["mortal"] = "yes"
        return await start_rollout(replace(spec, options=options))

    ScriptedEngine.step = mortal_step  # type: ignore[method-assign]
    light_controller.STARTERS["rollout"] = start
    live(life)


class Living:
    """A life of a light run that goes on while the test looks at it."""

    def __init__(self, run: LightRun, target: Callable[[Life], None] = live) -> None:
        self.run = run
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        life = Life(str(run.folder.root), "", 0, {}, STEP_S)
        self.process: ForkServerProcess = context.Process(target=target, args=(life,))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def iterations(self) -> list[int]:
        path = self.run.folder.metrics
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [int(row["iteration"]) for row in rows if "iteration_seconds" in row]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return self.run.events(kind) if self.run.folder.events.exists() else []

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert self.process.exitcode is None, self.run.last_words()
            assert time.monotonic() < deadline, self.run.last_words()
            time.sleep(0.02)

    def end(self) -> int:
        self.process.join(LIMIT_S)
        assert self.process.exitcode is not None, self.run.last_words()
        return self.process.exitcode


@pytest.fixture
def living(tmp_path: Path) -> Iterator[list[Living]]:
    """Lives; those that a failed test left are ended."""
    lives: list[Living] = []
    yield lives
    for life in lives:
        if life.process.exitcode is None:
            life.process.kill()
            life.process.join()


def valkey(run: LightRun) -> "redis.Redis[bytes]":
    return redis.Redis.from_url(EmbeddedServer(run.folder.buffer).url)


def assert_trained_once(run: LightRun) -> None:
    """The exported weights were trained by each iteration of the surviving line once, in order."""
    seen = [line.split() for line in json.loads((run.folder.export / "weights.json").read_text())]
    iterations = [int(line[2]) for line in seen if line[0] == "rl"]
    assert iterations == sorted(set(iterations))
    names = [name for line in seen if line[0] == "rl" for name in line[4:]]
    assert len(names) == len(set(names)) > 0


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hung"])
def test_an_embedded_valkey_that_dies_or_hangs_is_started_again(
    tmp_path: Path, living: list[Living], blow: signal.Signals
) -> None:
    run = LightRun.prepare(tmp_path, "deadlines.heartbeat_s=1.5")
    living.append(life := Living(run))
    life.until(lambda: len(life.iterations()) >= 1)
    with valkey(run) as client:
        os.kill(int(client.info("server")["process_id"]), blow)
    assert life.end() == 0, run.last_words()
    (lost,) = run.events("buffer.lost")
    assert ("ended" in lost["message"]) == (blow == signal.SIGKILL)
    assert [event["facts"]["worker"] for event in run.events("worker.replaced")] == ["buffer"]
    assert not run.events("run.recovering")
    assert_trained_once(run)


def test_an_engine_alone_is_replaced_while_the_others_go_on(tmp_path: Path, living: list[Living]) -> None:
    run = LightRun.prepare(tmp_path, "rollout.num_engines=2", "steps.1.rl.stages.0.samples_per_prompt=8")
    living.append(life := Living(run, live_with_a_mortal_engine))
    assert life.end() == 0, run.last_words()
    (lost,) = run.events("worker.lost")
    assert lost["facts"]["worker"] == "rollout-1"
    assert len(run.events("trajectory.given_back")) <= 1  # none, if it died between two trajectories
    assert [event["facts"]["worker"] for event in run.events("worker.replaced")] == ["rollout-1"]
    assert not run.events("run.recovering")
    assert not run.events("batch.retrained")
    served = {(row["worker_id"], row["version"]) for row in run.rows(run.folder.attestations)}
    assert any(worker.startswith("rollout-1.1") for worker, _ in served)
    assert_trained_once(run)


def test_refused_writes_pause_the_run_and_lose_nothing(tmp_path: Path, living: list[Living]) -> None:
    run = LightRun.prepare(tmp_path)
    living.append(life := Living(run))
    life.until(lambda: len(life.iterations()) >= 1)
    with valkey(run) as client:
        client.config_set("maxmemory", "1")
        life.until(lambda: run.events("run.standing"))
        done = life.iterations()
        time.sleep(1.5)
        assert life.iterations() == done
        client.config_set("maxmemory", "0")
    assert life.end() == 0, run.last_words()
    standing = run.events("run.standing")[0]
    assert standing["message"].startswith("paused: buffer refuses writes (")
    assert len(run.events("run.going_on")) == len(run.events("run.standing"))
    assert not run.events("run.recovering")
    assert_trained_once(run)


def test_a_controller_that_comes_back_to_life_can_write_nothing(tmp_path: Path, living: list[Living]) -> None:
    run = LightRun.prepare(tmp_path)
    living.append(zombie := Living(run))
    zombie.until(lambda: len(zombie.iterations()) >= 2)
    os.kill(zombie.pid, signal.SIGSTOP)
    living.append(successor := Living(run, live_taking_over))
    successor.until(lambda: run.events("run.restored") and len(successor.iterations()) >= 3)
    os.kill(zombie.pid, signal.SIGCONT)
    assert zombie.end() == 1, run.last_words()
    assert "another controller has taken over" in (run.folder.logs / "controller.log").read_text()
    assert successor.end() == 0, run.last_words()
    assert not run.events("run.failed")
    assert not (run.folder.root / "failure.json").exists()
    sequences = [row["sequence"] for row in run.rows(run.folder.events)]
    assert sequences == sorted(set(sequences))
    assert len(run.events("run.done")) == 1
    assert_trained_once(run)
