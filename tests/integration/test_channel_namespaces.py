"""The tcp channel between two network namespaces joined by a veth pair, by mTLS, as between two pods."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from crescendo.common.rpc.identity import VARIABLE, Identity
from crescendo.common.rpc.server import ADDRESS_VARIABLE
from crescendo.controller.operator.certificates import new_authority
from crescendo.proto.v1 import common_pb2
from crescendo.trainer.channels import open_channel
from tests.contract.channel_cases import RUN, publish, tensors
from tests.integration.identities import identity_folder

ROOT = Path(__file__).parents[2]
NOW = datetime.now(UTC)


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)


@pytest.fixture(scope="module")
def namespace() -> Iterator[tuple[str, str]]:
    """A namespace's name, and this side's address as it is seen from there."""
    number = os.getpid() % 250 + 1
    name, here, there = f"crescendo{number}", f"cr{number}a", f"cr{number}b"
    made = ip("netns", "add", name) if shutil.which("ip") else None
    if made is None or made.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"no network namespaces: {made.stderr if made else 'ip is missing'}")
        pytest.skip(f"no network namespaces here: {made.stderr.strip() if made else 'ip is missing'}")
    try:
        steps = [
            ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name),
            ip("addr", "add", f"10.213.{number}.1/24", "dev", here),
            ip("link", "set", here, "up"),
            ip("-n", name, "addr", "add", f"10.213.{number}.2/24", "dev", there),
            ip("-n", name, "link", "set", there, "up"),
        ]
        failed = [step.stderr.strip() for step in steps if step.returncode]
        if failed:
            pytest.skip(f"no veth pair here: {failed[0]}")
        yield name, f"10.213.{number}.1"
    finally:
        ip("link", "del", here)
        ip("netns", "del", name)


def fetch_there(name: str, manifest: Path, identity: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.contract.channel_cases", str(manifest), f"{RUN}-{name}"]
    environment = {**os.environ, VARIABLE: str(identity), "GOMP_SPINCOUNT": "0"}
    return subprocess.run(
        ["ip", "netns", "exec", name, *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def test_only_an_engine_of_the_job_gets_weights_in_another_pod(
    namespace: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, address = namespace
    authority = new_authority(NOW)
    worker = identity_folder(tmp_path / "worker", Identity("team", "uid-1", "worker"), authority)
    stranger = identity_folder(tmp_path / "stranger", Identity("team", "uid-2", "worker"), authority)
    monkeypatch.setenv(VARIABLE, str(worker))
    monkeypatch.setenv(ADDRESS_VARIABLE, address)
    channel = open_channel("tcp", run_id=RUN, run_folder=tmp_path, threads=1)
    try:
        manifest: common_pb2.WeightManifest = publish(channel, 1, tensors(5))
        assert manifest.shards[0].address.startswith(f"{address}:")
        path = tmp_path / "manifest"
        path.write_bytes(manifest.SerializeToString())
        taken = fetch_there(name, path, worker)
        assert taken.stdout.strip() == f"{manifest.digest:016x}", taken.stderr[-2000:]
        refused = fetch_there(name, path, stranger)
        assert refused.returncode != 0
        assert "WorkerLostError" in refused.stderr
    finally:
        channel.close()
