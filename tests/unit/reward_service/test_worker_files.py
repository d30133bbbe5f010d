"""What a worker can read: its libraries, and nothing that belongs to a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crescendo.reward_service.sandbox.inside import kernel
from crescendo.reward_service.workers.confine import clean_environment
from crescendo.reward_service.workers.files import readable_paths

SEALED = """
import os, signal, socket, sys
from crescendo.reward_service.workers import confine
from crescendo.reward_service.workers.files import restrict_files
confine.confine(1 << 30)
print(restrict_files())
token, parent = sys.argv[1], os.getppid()
def tried(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"
print(tried(lambda: open(token).read()))
print(tried(lambda: os.listdir(os.path.dirname(token))))
print(tried(lambda: open(token, "w")))
print(tried(lambda: open(f"/proc/{parent}/environ").read()))
import xml.dom.minidom  # a module that was not loaded before
from crescendo.reward_service.scorers import Sample, SCORERS
scorer = SCORERS["math_answer"]
print(scorer.score(Sample(r"\\\\boxed{\\\\frac{2}{4}}", ("0.5",)), scorer.options()).raw)
"""


@pytest.mark.skipif(kernel.landlock_abi() < 1, reason="this kernel offers no Landlock")
def test_a_worker_reads_its_libraries_and_no_token(tmp_path: Path) -> None:
    token = tmp_path / "control" / "token"
    token.parent.mkdir()
    token.write_text("secret")
    done = subprocess.run(
        [sys.executable, "-c", SEALED.replace("\\\\\\\\", "\\\\"), str(token)],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(os.environ),
    )
    assert done.returncode == 0, done.stderr
    refused = ["PermissionError"] * 4
    assert done.stdout.split() == ["True", *refused, "1.0"]


def test_what_is_readable_holds_no_run(tmp_path: Path) -> None:
    allowed = readable_paths()
    for outside in (tmp_path, Path.cwd() / "runs", Path.home() / ".ssh", Path("/etc/passwd"), Path("/proc")):
        assert not any(outside.resolve().is_relative_to(path) for path in allowed)


WORKER = """
import os, socket, sys
from dataclasses import replace
from crescendo.proto.v1 import reward_pb2
from crescendo.reward_service.scorers import WORKER_SCORERS, Outcome
from crescendo.reward_service.workers.frames import FrameReader, frame
from crescendo.reward_service.workers.worker import run_worker
WORKER_SCORERS["exact_match"] = replace(
    WORKER_SCORERS["exact_match"], score=lambda sample, options: Outcome(1.0, detail=open(sample.text).read())
)
ours, theirs = socket.socketpair()
parent = os.getpid()
if os.fork() == 0:
    ours.close()
    os.setsid()
    run_worker(theirs.detach(), 512 << 20, parent)
    os._exit(0)
item = reward_pb2.ScoreItem(response=sys.argv[1].encode(), chain=[reward_pb2.ScorerSpec(name="exact_match")])
task = reward_pb2.WorkerTask(item=item, deadline_seconds=10.0)
ours.sendall(frame(task.SerializeToString()))
reader = FrameReader(1 << 20)
reader.feed(ours.recv(1 << 16))
print(reward_pb2.WorkerAnswer.FromString(next(reader.payloads())).components[0].detail)
"""


@pytest.mark.skipif(kernel.landlock_abi() < 1, reason="this kernel offers no Landlock")
def test_a_scorer_that_was_taken_over_finds_no_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(token)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "secret" not in done.stdout
    assert "Permission denied" in done.stdout
