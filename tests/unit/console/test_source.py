"""A finished run is shown from its files; a living one through its controller; the switch between them."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from crescendo.common.control import read_controller
from crescendo.common.errors import RequestError, RunFolderError
from crescendo.common.runfolder import RunFolder
from crescendo.console.source import FinishedRun, SwitchingRun

FAKES = Path(__file__).parents[2] / "fakes"
CONFIG = """
run: {name: try}
model: {source: scratch, scratch: {vocabulary: "0123456789.$", max_positions: 256}}
data: {train: {name: task, path: t}, validation: {name: task, path: t}, max_prompt_tokens: 32}
rewards: {chains: {math: [{scorer: exact_match}]}}
steps: [{kind: rl, rl: {stages: [{name: short, max_response_tokens: 32}, {name: long, max_response_tokens: 96}]}}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "try", "try")
    made.config.write_text(CONFIG)
    return made


def write_rows(path: Path, *rows: dict[str, object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


async def test_a_stopped_run_from_its_files(folder: RunFolder) -> None:
    write_rows(
        folder.metrics,
        {"stage": "sft", "unix_seconds": 1.0, "sft_step": 10, "sft_loss": 1.5},
        {"stage": "short", "unix_seconds": 2.0, "iteration": 1, "reward": 0.1},
        {"stage": "long", "unix_seconds": 3.0, "iteration": 2, "reward": 0.4, "later_key": "text"},
    )
    correct = {"name": "m", "verdict": "VERDICT_CORRECT"}
    samples = [{"trajectory_id": f"t{n}", "iteration": n, "response": "9", "components": [correct]} for n in range(5)]
    write_rows(folder.samples, *samples)
    write_rows(
        folder.events,
        {"sequence": 1, "kind": "run.started", "message": "go", "facts": {}, "unknown": 3},
        {"sequence": "x"},
    )
    run = FinishedRun(folder)
    status = await run.status()
    assert (status.phase, status.iteration, status.stage) == ("stopped", 2, "long")
    assert [(stage.name, stage.state, stage.entered_iteration) for stage in status.stages] == [
        ("short", "done", 1),
        ("long", "active", 2),
    ]
    assert len(await run.metrics(0)) == 3
    assert len(await run.metrics(2)) == 1
    assert [sample.trajectory_id for sample in await run.samples(2)] == ["t4", "t3"]
    assert [event.message for event in await run.events()] == ["go"], "the damaged row is left out"
    with pytest.raises(RequestError, match="takes no verbs"):
        await run.act("pause", "")


async def test_a_done_run_and_a_failed_one(folder: RunFolder) -> None:
    write_rows(folder.metrics, {"stage": "short", "iteration": 1})
    write_rows(folder.events, {"sequence": 1, "kind": "run.failed", "message": "engine died", "severity": "error"})
    failed = await FinishedRun(folder).status()
    assert (failed.phase, failed.failure) == ("failed", "engine died")
    stages = [
        {"name": "short", "entered_iteration": 1, "left_by": "length_turn", "accuracy": 0.4},
        {"name": "long", "entered_iteration": -1, "left_by": None, "accuracy": None},
    ]
    folder.summary.write_text(json.dumps({"stages": stages}))
    done = await FinishedRun(folder).status()
    assert done.phase == "done"
    assert [(stage.state, stage.left_by, stage.accuracy) for stage in done.stages] == [
        ("done", "length_turn", 0.4),
        ("waiting", "", 0.0),
    ]


def test_only_a_living_controller_counts(folder: RunFolder) -> None:
    assert read_controller(folder) is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    folder.controller.write_text(json.dumps({"address": "127.0.0.1:1", "pid": ended.pid}))
    ended.wait(10)
    assert read_controller(folder) is None
    folder.controller.write_text(json.dumps({"address": "127.0.0.1:1", "pid": os.getpid()}))
    assert read_controller(folder) is not None
    folder.controller.write_text("{}")
    with pytest.raises(RunFolderError, match="is damaged"):
        read_controller(folder)


@pytest.fixture
def controller(folder: RunFolder) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {**os.environ, "PYTHONPATH": str(FAKES), "CRESCENDO_FAKE": "endless"}
    process = subprocess.Popen(
        [sys.executable, "-m", "fake_controller", "--run-folder", str(folder.root)], env=environment
    )
    deadline = time.monotonic() + 20
    while not folder.controller.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait(10)
    orphan = int((folder.root / "orphan.pid").read_text())
    if psutil.pid_exists(orphan):
        psutil.Process(orphan).kill()


async def test_a_living_run_through_its_controller_and_its_files_afterwards(
    folder: RunFolder, controller: "subprocess.Popen[bytes]"
) -> None:
    run = SwitchingRun(folder)
    try:
        assert (await run.status()).phase in ("start", "rollout")
        assert await run.act("pause", "") == "The run pauses at its next safe point."
        assert (await run.status()).paused
        assert await run.act("resume", "") == "The run goes on."
        assert await run.act("promote", "") == "The run enters stage medium after this iteration."
        with pytest.raises(RequestError, match="is no verb"):
            await run.act("explode", "")
        assert (await run.events())[-1].sequence >= 1
        for _ in range(400):  # until the controller has written what is read after its death
            if all(path.exists() and path.stat().st_size for path in (folder.metrics, folder.samples)):
                break
            await asyncio.sleep(0.05)
        controller.kill()
        controller.wait(10)
        after = await run.status()
        assert (after.phase, after.paused) == ("stopped", False)
        assert len(await run.metrics(0)) >= 1
        assert len(await run.samples(3)) >= 1
    finally:
        await run.close()
    verbs = [json.loads(line)["verb"] for line in (folder.root / "verbs.jsonl").read_text().splitlines()]
    assert verbs == ["pause", "resume", "promote"]
