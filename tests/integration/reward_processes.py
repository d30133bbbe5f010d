"""Starts the reward and executor services as the controller does: as subprocesses, by spec file and ready file."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from crescendo.common.rpc import Client, Endpoint
from crescendo.common.service import ServiceSpec
from crescendo.proto.v1 import reward_pb2, reward_pb2_grpc

START_S = 120.0
TOKEN = "token-of-the-test"
SECRET = "secret-of-the-launcher"

EXACT = [reward_pb2.ScorerSpec(name="exact_match", weight=1.0, options={"marker": "#", "strip": "$"})]
MATH = [reward_pb2.ScorerSpec(name="math_answer", weight=1.0)]

RewardClient = Client[reward_pb2_grpc.RewardServiceStub]
ExecutorClient = Client[reward_pb2_grpc.ExecutorServiceStub]


def score_item(
    name: str, response: str | bytes, gold: str, chain: Sequence[reward_pb2.ScorerSpec] = MATH
) -> reward_pb2.ScoreItem:
    """An item with one gold answer."""
    data = response if isinstance(response, bytes) else response.encode("utf-8", "surrogatepass")
    return reward_pb2.ScoreItem(item_id=name, response=data, gold_answers=[gold], chain=chain)


def spec_of(role: str, options: Mapping[str, str], address: str = "") -> ServiceSpec:
    """A spec as the controller writes it: the token for the reward process only."""
    token = TOKEN if role == "reward" else ""
    return ServiceSpec(role, f"{role}-0", "", "test", token, address=address, options=dict(options))


def launch(role: str, spec: ServiceSpec, folder: Path) -> tuple["subprocess.Popen[bytes]", str]:
    """Starts a service process; returns it and its address once it is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    spec_file, ready_file = folder / "spec.json", folder / "ready"
    spec_file.write_text(spec.to_json())
    ready_file.unlink(missing_ok=True)
    files = ("--spec-file", str(spec_file), "--ready-file", str(ready_file))
    process = subprocess.Popen(
        [sys.executable, "-m", "crescendo.reward_service", role, *files],
        env={**os.environ, "LAUNCHER_SECRET": SECRET},
    )
    wait_until(lambda: ready_file.exists() or process.poll() is not None, START_S)
    if not ready_file.exists():
        raise AssertionError(f"{role} ended with {process.returncode} before it was ready")
    return process, ready_file.read_text()


class RewardProcesses:
    """Both services, running."""

    def __init__(self, folder: Path, options: Mapping[str, str]) -> None:
        self.executor, self.executor_address = launch("executor", spec_of("executor", options), folder / "executor")
        self.reward, self.address = launch(
            "reward", spec_of("reward", options, self.executor_address), folder / "reward"
        )

    def client(self, token: str = TOKEN) -> RewardClient:
        """A client of the reward process; for one event loop."""
        return Client(Endpoint(self.address, token), reward_pb2_grpc.RewardServiceStub)

    def executor_client(self) -> ExecutorClient:
        """A client of the executor."""
        return Client(Endpoint(self.executor_address), reward_pb2_grpc.ExecutorServiceStub)

    def descendants(self) -> list[psutil.Process]:
        """The zygote and the workers."""
        return psutil.Process(self.executor.pid).children(recursive=True)

    def stop(self) -> tuple[int, int]:
        """SIGTERM to both; returns their exit codes."""
        for process in (self.reward, self.executor):
            process.terminate()
        return self.reward.wait(30), self.executor.wait(30)


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie that nobody has collected yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Returns when the condition holds; raises AssertionError after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s")
        time.sleep(0.02)
