"""What a cluster puts around a run, on loopback: a Ray head, certificates, a buffer with a password, a reward service.

The Ray head stands for the pods of a RayJob, with the identity that the operator gives to worker pods; the light
trainer takes the trainer's place in it, by an entry point that comes first on its path.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from crescendo.common.rpc.identity import VARIABLE, Identity
from crescendo.controller.operator.certificates import KeyPair, new_authority
from tests.integration.identities import identity_folder
from tests.integration.reward_processes import launch, spec_of
from tests.integration.valkey_server import free_port, valkey

ROOT = Path(__file__).parents[2]
PLATFORM = ("crescendo-system", "platform")
START_S = 90.0
PASSWORD = "password-of-the-test"
RAY_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # as KubeRay sets it in every pod


class Identities:
    """Folders with certificates of one authority, as Secrets mount them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._authority: KeyPair = new_authority(datetime.now(UTC))

    def folder(self, namespace: str, uid: str, role: str) -> str:
        """The folder of an identity, made where it is missing."""
        folder = self._root / f"{namespace}.{uid}.{role}"
        if not folder.exists():
            identity_folder(folder, Identity(namespace, uid, role), self._authority)
        return str(folder)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """These variables, for as long as the context; what is started in it inherits them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def buffer(folder: Path) -> Iterator[str]:
    """A server with a password, which a file beside it holds as the job's Secret would; gives its host:port."""
    folder.mkdir(parents=True)
    (folder / "password").write_text(PASSWORD)
    with valkey(folder / "data", "--requirepass", PASSWORD, "--appendfsync", "always") as port:
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def reward_service(folder: Path, identities: Identities) -> Iterator[str]:
    """The platform's reward service and executor; gives the former's host:port."""
    options = {"workers": "1", "scorers": "exact_match,math_answer"}
    executor, executor_address = launch("executor", spec_of("executor", options), folder / "executor")
    try:
        with environment(**{VARIABLE: identities.folder(*PLATFORM, "reward"), "POD_IP": "127.0.0.1"}):
            spec = spec_of("reward", options, executor_address)
            process, address = launch("reward", spec, folder / "reward")
        try:
            yield address
        finally:
            end(process)
    finally:
        end(executor)


@contextlib.contextmanager
def ray_head(folder: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """A Ray head whose workers have these variables; gives its address."""
    scratch = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets below it: their paths must be short
    port, log = free_port(), folder / "ray.log"
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=16", "--include-dashboard=false",
        f"--object-store-memory={80 << 20}", f"--temp-dir={scratch}", f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip
    path = os.pathsep.join((str(light_services(folder / "path")), str(ROOT)))
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            env={**os.environ, **variables, **RAY_TOKEN, "PYTHONPATH": path, "GOMP_SPINCOUNT": "0"},
        )  # fmt: skip
    try:
        give_up = time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < give_up, log.read_text(errors="replace")
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        end(process)
        shutil.rmtree(scratch, ignore_errors=True)


def light_services(folder: Path) -> Path:
    """A folder for the front of a Python path, whose entry points put the light trainer in the real one's place."""
    distribution = folder / "light_services-0.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: light-services\nVersion: 0\n")
    (distribution / "entry_points.txt").write_text(
        "[crescendo.services]\ntrainer = tests.integration.light_services:start_trainer\n"
    )
    return folder


def end(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, then SIGKILL."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)
