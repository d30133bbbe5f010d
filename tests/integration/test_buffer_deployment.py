"""The buffer on servers of others: logins with few rights, TLS, clusters, wrong settings, a full disk or memory."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from crescendo.buffer import EmbeddedServer, RedisBuffer, Update, connect, runs
from crescendo.buffer.check import check_server
from crescendo.buffer.permissions import acl_rule
from crescendo.common import errors
from crescendo.common.types import GroupState, TrajectoryId
from tests.contract.buffer_cases import Driver, ManualClock, batch, new_group, segment
from tests.integration.valkey_server import Authority, form_cluster, tiny_disk, tls_front, valkey


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with valkey(tmp_path_factory.mktemp("valkey")) as port:
        yield port


async def whole_life(buffer: RedisBuffer) -> None:
    """Everything that a run does, once."""
    driver = await Driver.take_over(buffer, ManualClock())
    done, dropped = new_group(0), new_group(1)
    await driver.complete(done)
    await driver.buffer.record_batch(driver.fence, batch(done))
    await driver.open(dropped)
    (first, _) = await driver.claim("w1")
    await driver.flush(Update(first, 0, segment(3)))
    await buffer.release_worker(driver.fence, "w1")
    await buffer.drop_group(driver.fence, dropped.group_id, "test")
    assert await driver.claim("w2", wait_s=0.05) == []
    await buffer.commit(driver.fence, 0, 1, "m")
    assert await buffer.trim(await buffer.acquire_archiver(), {done.group_id: "file"}) == 1
    assert await buffer.open_branch(driver.fence, parent=0, from_iteration=1, drop_partials=True) == 1


# Logins ------------------------------------------------------------------------------------------------


@pytest.fixture
def login(port: int, tmp_path: Path) -> str:
    """The options of a URL with a password from a file."""
    with contextlib.closing(redis.Redis(port=port)) as admin:
        admin.execute_command(*acl_rule("narrow").replace("PASSWORD", "secret").split())
    (tmp_path / "password").write_text("secret\n")
    return f"password_file={tmp_path / 'password'}"


async def test_tls_with_a_login_that_may_do_no_more_than_a_run_needs(port: int, login: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.leaf("client")
    async with tls_front(port, authority) as tls_port:
        url = f"rediss://narrow@127.0.0.1:{tls_port}/0?{login}&ssl_ca_certs={authority.file}"
        buffer = await connect(f"{url}&ssl_certfile={certificate}&ssl_keyfile={key}", "tls", patience_s=3)
        await whole_life(buffer)
        await buffer.close()
        with pytest.raises(errors.CrescendoError):
            await connect(url, "tls", patience_s=0.2)
        stranger = Authority(tmp_path / "..").file
        with pytest.raises(errors.WorkerLostError):
            await connect(f"{url.partition('ssl_ca')[0]}ssl_ca_certs={stranger}", "tls", patience_s=0.2)


async def test_the_login_reaches_runs_only_and_flushes_nothing(port: int, login: str) -> None:
    with contextlib.closing(redis.Redis(port=port, username="narrow", password="secret")) as client:
        for forbidden in (("KEYS", "*"), ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "GET", "*"), ("GET", "other")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*forbidden)
    await check_server(f"redis://narrow@127.0.0.1:{port}/0?{login}")


async def test_what_a_login_lacks_is_named(port: int, login: str) -> None:
    url = f"redis://narrow@127.0.0.1:{port}/0?{login}"
    with contextlib.closing(redis.Redis(port=port)) as admin:
        for lacking in ("zadd", "waitaof", "evalsha", "blpop"):
            admin.acl_setuser("narrow", enabled=True, commands=[f"-{lacking}"])
            with pytest.raises(errors.EnvironmentProblem, match=lacking) as raised:
                await check_server(url)
            assert raised.value.fix.partition("ACL SETUSER")[1]
            admin.acl_setuser("narrow", enabled=True, commands=[f"+{lacking}"])
    await check_server(url)
    with pytest.raises(errors.EnvironmentProblem, match="refused the login"):
        await connect(f"redis://narrow:wrong@127.0.0.1:{port}/0", "run", patience_s=1)


async def test_a_login_for_one_run_cannot_reach_another(port: int) -> None:
    with contextlib.closing(redis.Redis(port=port)) as admin:
        admin.execute_command(*acl_rule("single", "mine").replace("PASSWORD", "s").split())
    buffer = await connect(f"redis://single:s@127.0.0.1:{port}/0", "mine")
    await whole_life(buffer)
    await buffer.close()
    with pytest.raises(errors.EnvironmentProblem, match="may not"):
        await connect(f"redis://single:s@127.0.0.1:{port}/0", "yours")


# Clusters ----------------------------------------------------------------------------------------------


async def test_a_cluster_serves_each_run_from_one_node(tmp_path: Path) -> None:
    """A script that touched a second slot would be refused by the server."""
    with contextlib.ExitStack() as stack:
        settings = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        ports = [stack.enter_context(valkey(tmp_path / str(number), *settings)) for number in range(2)]
        form_cluster(ports)
        names = [f"run-{number}" for number in range(6)]
        for name in names:
            buffer = await connect(f"redis://127.0.0.1:{ports[0]}/0", name)
            await whole_life(buffer)
            assert (await buffer.counts())["groups.consumed"] == 1
            await buffer.close()
        found = [await runs.list_runs(f"redis://127.0.0.1:{port}/0") for port in ports]
        assert sorted(run for some in found for run in some) == names
        assert sum(bool(some) for some in found) > 1, "the runs lie on several nodes"
        await check_server(f"redis://127.0.0.1:{ports[0]}/0")


# Settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "appendonly", "named"),
    [
        (("--maxmemory-policy", "allkeys-lru"), "yes", "maxmemory-policy noeviction"),
        (("--maxmemory-policy", "volatile-ttl"), "yes", "maxmemory-policy noeviction"),
        ((), "no", "appendonly yes"),
    ],
)
async def test_a_wrong_setting_is_named_with_what_to_set(
    tmp_path: Path, settings: tuple[str, ...], appendonly: str, named: str
) -> None:
    with valkey(tmp_path, *settings, appendonly=appendonly) as port:
        with pytest.raises(errors.BufferStateError) as raised:
            await check_server(f"redis://127.0.0.1:{port}/0")
        assert named in raised.value.fix


async def test_a_replica_is_no_place_for_a_run(port: int, tmp_path: Path) -> None:
    with valkey(tmp_path, "--replicaof", f"127.0.0.1 {port}") as replica:
        with pytest.raises(errors.EnvironmentProblem, match="replica"):
            await check_server(f"redis://127.0.0.1:{replica}/0")
        with pytest.raises(errors.BufferRefusedError):
            await connect(f"redis://127.0.0.1:{replica}/0", "lost", patience_s=0.2)


async def test_too_few_replicas_refuse_a_write(tmp_path: Path) -> None:
    raised = pytest.raises(errors.BufferRefusedError, match="min-replicas-to-write")
    with valkey(tmp_path, "--min-replicas-to-write", "1") as port, raised:
        await connect(f"redis://127.0.0.1:{port}/0", "run", patience_s=0.2)


# Space -------------------------------------------------------------------------------------------------


async def test_admission_reserves_what_open_trajectories_may_still_need(tmp_path: Path) -> None:
    with valkey(tmp_path, "--maxmemory", "24mb", "--maxmemory-policy", "noeviction") as port:
        driver = await Driver.take_over(await connect(f"redis://127.0.0.1:{port}/0", "run"), ManualClock())
        wanted = [replace(new_group(draw), max_response_tokens=100_000) for draw in range(20)]
        admission = await driver.buffer.open_groups(driver.fence, wanted)
        assert 2 < admission.opened < 15
        assert [group.group_id for group in wanted[admission.opened :]] == list(admission.refused)
        again = await driver.buffer.open_groups(driver.fence, wanted)
        assert (again.opened, again.refused) == (0, admission.refused), "what is open keeps its place"
        claimed = await driver.claim(limit=2)
        await driver.finish(*claimed)
        assert len((await driver.buffer.open_groups(driver.fence, wanted)).refused) == len(admission.refused) - 1
        for group in wanted[: admission.opened + 1]:
            await driver.buffer.drop_group(driver.fence, group.group_id, "test")
        huge = replace(new_group(99), max_response_tokens=10_000_000)
        with pytest.raises(errors.BufferRefusedError, match="single group"):
            await driver.buffer.open_groups(driver.fence, [huge])
        await driver.buffer.close()


async def test_a_run_keeps_to_its_budget(port: int) -> None:
    buffer = await connect(f"redis://127.0.0.1:{port}/0", "budget", budget_bytes=1_000_000)
    fence = await buffer.acquire_epoch()
    wanted = [replace(new_group(draw), max_response_tokens=10_000) for draw in range(20)]
    admission = await buffer.open_groups(fence, wanted)
    assert admission.opened == 1_000_000 // (2 * (9 * 10_000 + 512) + 200)
    await buffer.close()


async def flush_for_ever(driver: Driver, one: TrajectoryId) -> None:
    for number in range(200):
        await driver.flush(Update(one, 100 * number, segment(100)))


@pytest.mark.parametrize("policy", ["everysec", "always"])
async def test_a_full_disk_refuses_and_the_run_goes_on_when_there_is_space(tmp_path: Path, policy: str) -> None:
    with tiny_disk(tmp_path / "disk", 8) as disk:
        server = EmbeddedServer(disk / "buffer", append_fsync=policy)
        url = server.start()
        clock = ManualClock()
        try:
            driver = await Driver.take_over(await connect(url, "run", patience_s=0.3), clock)
            done = new_group(0)
            await driver.complete(done)
            await driver.buffer.record_batch(driver.fence, batch(done))
            await driver.open(new_group(1))
            (first, second) = await driver.claim()
            (disk / "filler").write_bytes(b"")
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while filler.write(b"x" * 4096):
                    pass
            started = time.monotonic()
            with pytest.raises(errors.CrescendoError) as raised:
                await flush_for_ever(driver, first)
            assert raised.value.retryable
            assert time.monotonic() - started < 10
            if policy == "always":  # the server ends rather than acknowledge what it can't store
                with pytest.raises(errors.BufferRefusedError, match="full"):
                    server.restart()
            else:
                assert isinstance(raised.value, errors.BufferRefusedError)
            (disk / "filler").unlink()
            if policy == "always":
                server.restart()
            else:
                await asyncio.sleep(1.1)
            stored = (await driver.buffer.load_trajectories([first]))[0].num_tokens
            assert stored % 100 == 0
            assert await driver.flush(Update(first, stored, segment(5)), Update(second, 0, segment(5))) == []
            assert await driver.buffer.groups(GroupState.CONSUMED) == [done.group_id]
            await driver.buffer.close()
        finally:
            server.stop()
