"""One server for many jobs, with the chart's own start command: each login reaches its own run and nothing else."""

import contextlib
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from crescendo.buffer import connect
from crescendo.buffer.check import check_server
from crescendo.common import errors
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.resource import Job
from crescendo.controller.operator.shared_buffer import SharedBuffer, SharedBufferProblem, job_url, run_id
from tests.integration.test_buffer_deployment import whole_life
from tests.integration.valkey_server import binary, free_port, wait_for
from tests.unit.chart.test_chart import render
from tests.unit.controller.rljob.world import START

ADMIN = "the-administrators-password"


def job(name: str, uid: str, namespace: str = "team", retention: str = "Retain", **annotations: str) -> Job:
    spec: dict[str, Any] = {"run": {}, "buffer": {"mode": "Shared"}, "storage": {"retention": retention}}
    return Job(name, namespace, uid, 1, START, False, spec, {}, annotations)


@contextlib.contextmanager
def chart_server(folder: Path) -> Iterator[int]:
    """The chart's Valkey, its command carried out with folders of this machine."""
    (pod,) = [one for one in render({"valkey": {"enabled": True}}) if one["kind"] == "StatefulSet"]
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    port = free_port()
    (script,) = container["args"]
    for place in ("data", "bin", "secret"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "secret/password").write_text(ADMIN)
    with contextlib.suppress(FileExistsError):
        (folder / "bin/valkey-server").symlink_to(binary())
    script = script.replace("/etc/valkey", str(folder / "secret")).replace("/data", str(folder / "data"))
    script = script.replace("--port 6379", f"--port {port}").replace("--bind '*'", "--bind 127.0.0.1")
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([*container["command"], script], env=environment, stdout=log, stderr=log)
    try:
        wait_for(port)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with chart_server(tmp_path / "server") as port:
        yield port


def options(port: int, tmp_path: Path, **fields: Any) -> Options:
    (tmp_path / "admin").write_text(f"{ADMIN}\n")
    url, file = f"redis://127.0.0.1:{port}/0", str(tmp_path / "admin")
    return Options(shared_buffer_url=url, shared_buffer_password_file=file, **fields)


def url_of(job: Job, known: Options, tmp_path: Path, password: str) -> str:
    file = tmp_path / f"password-{job.uid}"
    file.write_text(password)
    return job_url(job, known, str(file))


async def test_a_login_serves_its_own_run_and_nothing_else(
    port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    known = options(port, tmp_path)
    ours, theirs = job("math", "uid-1"), job("math", "uid-1", namespace="other")
    for one, password in ((ours, "first-secret"), (theirs, "second-secret")):
        await SharedBuffer(known).admit(one, password)
        await SharedBuffer(known).admit(one, password)
    url = url_of(ours, known, tmp_path, "first-secret")
    buffer = await connect(url, run_id(ours), patience_s=3)
    await whole_life(buffer)
    await buffer.close()
    with pytest.raises(errors.CrescendoError, match="may not"):
        await connect(url, run_id(theirs), patience_s=0.5)
    login = url.split("//")[1].split("@")[0]
    with contextlib.closing(redis.Redis(port=port, username=login, password="first-secret")) as client:
        others = (("SCAN", "0"), ("CLIENT", "LIST"), ("GET", "{crescendo:other.uid-1}:x"))
        for forbidden in (("ACL", "LIST"), ("FLUSHALL",), ("CONFIG", "GET", "*"), *others):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*forbidden)
    with contextlib.closing(redis.Redis(port=port)) as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()
    assert "secret" not in caplog.text
    assert ADMIN not in caplog.text


async def test_an_id_that_would_end_the_rule_makes_no_login(port: int, tmp_path: Path) -> None:
    shared = SharedBuffer(options(port, tmp_path))
    greedy = job("math", "uid-1", **{"rl.crescendo.dev/adopt-storage": "x}:* allkeys +@all #"})
    with pytest.raises(SharedBufferProblem, match="must be the uid"):
        await shared.admit(greedy, "secret")
    assert await shared.logins() == []


async def test_logins_survive_a_restart_and_a_new_password_replaces_the_old(tmp_path: Path) -> None:
    one = job("math", "uid-1")
    with chart_server(tmp_path / "server") as port:
        await SharedBuffer(options(port, tmp_path)).admit(one, "old")
        await SharedBuffer(options(port, tmp_path)).admit(one, "new")
    with chart_server(tmp_path / "server") as port:
        login = url_of(one, options(port, tmp_path), tmp_path, "new").split("//")[1].split("@")[0]
        with contextlib.closing(redis.Redis(port=port, username=login, password="new")) as client:
            assert client.ping()
        former = redis.Redis(port=port, username=login, password="old")
        with contextlib.closing(former), pytest.raises(redis.exceptions.AuthenticationError):
            former.ping()
    stored = (tmp_path / "server/data/users.acl").read_text()
    assert ADMIN not in stored
    assert stored.count("user default ") == 1


async def test_a_job_that_is_gone_leaves_what_its_retention_says(port: int, tmp_path: Path) -> None:
    known = options(port, tmp_path)
    shared = SharedBuffer(known)
    kept, dropped, alive = job("a", "uid-a"), job("b", "uid-b", retention="Delete"), job("c", "uid-c")
    for one in (kept, dropped, alive):
        await shared.admit(one, "secret")
        buffer = await connect(url_of(one, known, tmp_path, "secret"), run_id(one), patience_s=3)
        await whole_life(buffer)
        await buffer.close()
    await SharedBuffer(options(port, tmp_path, shared_buffer_prefix="elsewhere")).admit(job("d", "uid-d"), "secret")
    await shared.admit(job("e", "uid-e", retention="Delete"), "secret")  # wrote nothing
    logins = await shared.logins()
    assert {login.uid for login in logins} == {"uid-a", "uid-b", "uid-c", "uid-e"}
    gone = await shared.sweep(logins, {"uid-c"})
    assert sorted(name.rsplit(".")[-1] for name in gone) == ["uid-a", "uid-b", "uid-e"]
    with contextlib.closing(redis.Redis(port=port, password=ADMIN)) as admin:
        runs = {key.decode().split("}")[0] for key in admin.scan_iter()}
        users = admin.acl_users()
    assert runs == {"{crescendo:team.uid-a", "{crescendo:team.uid-c"}
    assert len(users) == 3  # default, uid-c, and the other cluster's
    heir = job("heir", "uid-h", **{"rl.crescendo.dev/adopt-storage": "uid-a"})
    await shared.admit(heir, "secret")
    assert run_id(heir) == "team.uid-a"
    await check_server(f"redis://:{ADMIN}@127.0.0.1:{port}/0")
    buffer = await connect(url_of(heir, known, tmp_path, "secret"), run_id(heir), patience_s=3)
    await buffer.close()


async def test_a_server_that_is_not_there_or_refuses_is_told_without_its_password(port: int, tmp_path: Path) -> None:
    known = options(port, tmp_path)
    (tmp_path / "admin").write_text("wrong-password")
    with pytest.raises(SharedBufferProblem, match="valkey") as caught:
        await SharedBuffer(known).admit(job("a", "uid-a"), "job-secret")
    assert caught.value.retryable
    assert "wrong-password" not in str(caught.value)
    assert "job-secret" not in str(caught.value)
    with pytest.raises(SharedBufferProblem):
        await SharedBuffer(Options(shared_buffer_url=f"redis://127.0.0.1:{free_port()}/0")).logins()
