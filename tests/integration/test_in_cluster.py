"""What the operator starts in a pod really runs: its entry point, on a Ray that is there, with mTLS, by its run file.

No Kubernetes: loopback stands for the pod network. The operator's own code asks and steers the run, over two attempts.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from crescendo.common.config import load_config, load_resolved, read_mapping, save_resolved
from crescendo.common.control import ControllerClient
from crescendo.common.errors import CrescendoError
from crescendo.common.rpc.identity import VARIABLE
from crescendo.common.telemetry import read_jsonl
from crescendo.controller.app import PORT_VARIABLE
from crescendo.controller.operator.children.pods import BUFFER_PASSWORD_MOUNT, RUN_FILE_MOUNT
from crescendo.controller.operator.children.rayjob import ENTRYPOINT
from crescendo.controller.operator.children.run_file import run_file
from crescendo.controller.operator.failures import classify
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.progress import ControllerRuns
from crescendo.controller.operator.render import to_rljob
from crescendo.controller.operator.resource import Attempt, Job, Report
from crescendo.controller.operator.writes import Call
from tests.integration.light_run import LIGHT
from tests.integration.ray_pods import PLATFORM, RAY_TOKEN, Identities, buffer, environment, ray_head, reward_service
from tests.integration.run_process import RECIPE
from tests.integration.valkey_server import free_port

JOB = ("team", "7d1f2c9e-0000-4000-8000-000000000001")
WAIT_S = 120.0
# The first stage goes on until it is promoted; the second takes two iterations.
SETTINGS = (
    "steps.1.rl.stages.0.gate.name=manual",
    "steps.1.rl.stages.0.gate.rollback=last",
    "steps.1.rl.stages.0.max_iterations=100000",
    "steps.1.rl.stages.1.gate.iterations=2",
    "steps.1.rl.checkpoints.every_iterations=20",
    "archive.enabled=true",
    "deadlines.start_s=120",
)


def mounted_run_file(folder: Path, buffer_address: str, reward_address: str) -> Path:
    """The operator's run file, with the mounts of a pod in a folder of the test's."""
    config = load_config(RECIPE, [*LIGHT, *SETTINGS])
    del config.steps[1].rl.stages[2:]
    save_resolved(config, folder / "resolved.yaml")
    spec = to_rljob(read_mapping(folder / "resolved.yaml"), image="crescendo/run:1")["spec"]
    job = Job("math", *JOB, 1, datetime.now(UTC), False, spec, {})
    found = run_file(job, Options(reward_address=reward_address))
    found["run"]["folder"] = str(folder / "volume")
    url = found["buffer"]["url"].replace("math-buffer.team.svc:6379", buffer_address)
    found["buffer"]["url"] = url.replace(BUFFER_PASSWORD_MOUNT, str(folder / "buffer"))
    path = folder / "job" / "run.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(found))
    return path


class Attempts:
    """Starts attempts of the job as KubeRay does: the entry point as the driver of a Ray job."""

    def __init__(self, folder: Path, ray_address: str, identities: Identities) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.volume = folder / "volume" / "math"
        self._folder = folder
        self._identities = identities
        self._environment = {
            **RAY_TOKEN,
            "RAY_ADDRESS": ray_address,
            VARIABLE: identities.folder(*JOB, "controller"),
            "POD_IP": "127.0.0.1",
            PORT_VARIABLE: self.address.rsplit(":", 1)[1],
        }

    def move_reward_service(self) -> None:
        """Gives it another name, as an installation does that was made anew."""
        path = self._folder / "job" / "run.yaml"
        found = yaml.safe_load(path.read_text())
        found["rewardService"]["address"] = found["rewardService"]["address"].replace("127.0.0.1", "localhost")
        path.write_text(yaml.safe_dump(found))

    @contextlib.contextmanager
    def start(self, number: int) -> Iterator["subprocess.Popen[bytes]"]:
        """One attempt."""
        name, *arguments = shlex.split(ENTRYPOINT.replace(RUN_FILE_MOUNT, str(self._folder / "job")))
        command = [str(Path(sys.executable).with_name(name)), *arguments]
        with open(self._folder / f"attempt-{number}.out", "wb") as output:
            process = subprocess.Popen(
                command, env={**os.environ, **self._environment}, stdout=output, stderr=output, cwd=self._folder
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
            process.kill()

    def output(self, number: int) -> str:
        """What an attempt printed, and the end of its controller's log."""
        log = self.volume / "logs" / "controller.log"
        tail = log.read_text(errors="replace")[-3000:] if log.exists() else ""
        return (self._folder / f"attempt-{number}.out").read_text(errors="replace") + tail

    async def report_when(self, holds: Callable[[Report], bool], process: "subprocess.Popen[bytes]", n: int) -> Report:
        """What the operator hears, as soon as a condition holds."""
        give_up = time.monotonic() + WAIT_S
        with self.as_role("operator"):
            while True:
                report = await ControllerRuns().report(self.address)
                if report is not None and holds(report):
                    return report
                assert process.poll() is None, self.output(n)
                assert time.monotonic() < give_up, (report, self.output(n))
                await asyncio.sleep(0.2)

    def as_role(self, role: str) -> contextlib.AbstractContextManager[None]:
        """This process has an identity of the platform's."""
        return environment(**{VARIABLE: self._identities.folder(*PLATFORM, role)})

    async def refused(self, *identity: str) -> bool:
        """Whether the controller refuses somebody else."""
        with environment(**{VARIABLE: self._identities.folder(*identity)}):
            client = ControllerClient(self.address, "")
            try:
                await client.status()
            except CrescendoError as error:
                return "may not call" in str(error)
            finally:
                await client.close()
        return False


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Attempts]:
    identities = Identities(tmp_path / "identities")
    worker = {VARIABLE: identities.folder(*JOB, "worker"), "POD_IP": "127.0.0.1"}
    with (
        buffer(tmp_path / "buffer") as buffer_address,
        reward_service(tmp_path / "reward", identities) as reward_address,
        ray_head(tmp_path, worker) as ray_address,
    ):
        mounted_run_file(tmp_path, buffer_address, reward_address)
        yield Attempts(tmp_path, ray_address, identities)


@pytest.mark.slow
async def test_two_attempts_of_a_job_as_the_operator_sees_them(cluster: Attempts) -> None:
    with cluster.start(1) as process:
        report = await cluster.report_when(lambda one: one.iteration >= 2, process, 1)
        assert (report.stage, report.stopped, report.failure) == ("context-32", False, "")
        assert await cluster.refused(*JOB, "worker")
        assert await cluster.refused("team", "another-job", "controller")
        with cluster.as_role("operator"):
            assert await ControllerRuns().call(cluster.address, Call("stop"))
        code = await asyncio.to_thread(process.wait, WAIT_S)
    assert code == 130, cluster.output(1)
    message = f"Job entrypoint command failed with exit code {code}, last available logs (truncated): ..."
    body = {"metadata": {"name": "math-1", "uid": "1"}, "status": {"jobStatus": "FAILED", "message": message}}
    assert classify(Attempt.from_body(body)).reason == "Stopped"
    committed = max(cluster.volume.glob("checkpoints/commit-*.json"))

    cluster.move_reward_service()
    with cluster.start(2) as process:
        await cluster.report_when(lambda one: one.iteration > 0, process, 2)
        with cluster.as_role("operator"):
            assert await ControllerRuns().call(cluster.address, Call("promote", "context-64"))
        code = await asyncio.to_thread(process.wait, WAIT_S)
    assert code == 0, cluster.output(2)
    assert max(cluster.volume.glob("checkpoints/commit-*.json")) > committed
    assert_what_ran(cluster)


def assert_what_ran(cluster: Attempts) -> None:
    rows: list[dict[str, Any]] = list(read_jsonl(cluster.volume / "metrics.jsonl"))
    stages = {row["stage"] for row in rows if "iteration_seconds" in row}
    assert stages == {"context-32", "context-64"}
    iterations = [row["iteration"] for row in rows if "iteration_seconds" in row]
    assert iterations == sorted(set(iterations))  # the second attempt went on where the first had stopped
    assert load_resolved(cluster.volume / "config.yaml").reward_service.address.startswith("localhost:")
    # Graded by the service that serves many runs: none of the run's own was started.
    assert not list(cluster.volume.glob("logs/reward-*")) + list(cluster.volume.glob("logs/executor-*"))


def test_the_probe_tells_right_from_wrong_and_that_programs_get_no_socket(tmp_path: Path) -> None:
    identities = Identities(tmp_path / "identities")
    with reward_service(tmp_path / "reward", identities) as address:
        for role, expected in (("probe", 0), ("worker", 1)):
            with environment(**{VARIABLE: identities.folder(*PLATFORM, role)}):
                ran = subprocess.run(
                    [sys.executable, "-m", "crescendo.reward_service.probe", address],
                    capture_output=True, text=True, timeout=90, check=False,
                )  # fmt: skip
            assert (ran.returncode != 0) == bool(expected), ran.stdout + ran.stderr
            assert ("is refused sockets: VERDICT_CORRECT" in ran.stdout) == (expected == 0)
