"""The buffer on a real Valkey that is killed, restarted, filled, closed to others and wrongly configured."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from crescendo.buffer import EmbeddedServer, Update, connect
from crescendo.buffer.check import check_server
from crescendo.common import errors
from crescendo.common.types import GroupState, TrajectoryState, trajectory_id
from tests.contract.buffer_cases import Driver, ManualClock, batch, new_group, segment, soon


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    made = EmbeddedServer(tmp_path / "buffer")
    made.start()
    yield made
    made.stop()


def kill(server: EmbeddedServer) -> None:
    """SIGKILL, and a look that it is gone."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.is_alive())


def wait_until(condition: object, limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(server: EmbeddedServer) -> None:
    clock = ManualClock()
    driver = await Driver.take_over(await connect(server.url, "run"), clock)
    done, running = new_group(0), new_group(1)
    await driver.complete(done)
    await driver.buffer.record_batch(driver.fence, batch(done))
    await driver.open(running)
    first, second = await driver.claim()
    await driver.flush(Update(first, 0, segment(5)), Update(second, 0, segment(7), TrajectoryState.PARKED))
    version = await driver.buffer.next_version(driver.fence, parent=0, branch=0, iteration=1)

    kill(server)
    url = server.restart()
    assert url == server.url
    assert await driver.flush(Update(first, 5, segment(2, start=5))) == [], "the lease and the connection survive"
    loaded = await driver.buffer.load_trajectories([first, second])
    assert [one.num_tokens for one in loaded] == [7, 7]
    assert await driver.group_state(done.group_id) == "consumed"
    assert await driver.buffer.batches_after(0, 0) == [batch(done)]
    assert await driver.buffer.next_version(driver.fence, parent=version, branch=0, iteration=2) == version + 1
    await driver.buffer.close()


async def test_a_call_waits_for_a_server_that_is_restarted(server: EmbeddedServer) -> None:
    buffer = await connect(server.url, "run", patience_s=15)
    fence = await buffer.acquire_epoch()
    claiming = asyncio.create_task(buffer.claim(fence, "w", limit=1, lease_s=5, iteration=1, max_spans=0, wait_s=15))
    await soon(0.2)
    kill(server)
    opening = asyncio.create_task(buffer.open_groups(fence, [new_group(samples=1)]))
    await soon(0.3)
    server.restart()
    assert (await asyncio.wait_for(opening, 10)).opened == 1
    assert [claim.trajectory.group_id for claim in await asyncio.wait_for(claiming, 10)] == [new_group().group_id]
    await buffer.close()


async def test_a_server_that_stays_away_is_an_error_in_time(server: EmbeddedServer) -> None:
    buffer = await connect(server.url, "run", patience_s=0.5)
    fence = await buffer.acquire_epoch()
    kill(server)
    started = time.monotonic()
    with pytest.raises(errors.WorkerLostError, match="can't be reached"):
        await buffer.open_groups(fence, [new_group()])
    assert time.monotonic() - started < 5
    await buffer.close()
    with pytest.raises(errors.WorkerLostError):
        await connect(server.url, "run", patience_s=0.2)


async def test_two_writers_of_one_lease_clock_agree_after_an_outage(server: EmbeddedServer) -> None:
    clock = ManualClock()
    buffer = await connect(server.url, "run", patience_s=0.3, monotonic=clock)
    driver = await Driver.take_over(buffer, clock)
    await driver.open(new_group(samples=1))
    await driver.claim(lease_s=3)
    kill(server)
    with pytest.raises(errors.WorkerLostError):
        await driver.tick(4)
    server.restart()
    assert await driver.tick(0) == [], "the outage does not count"
    assert await driver.tick(2) == []
    assert await driver.tick(1.5) == [trajectory_id(new_group().group_id, 0)]
    await buffer.close()


def fill(client: redis.Redis) -> None:
    """Fills the server to its last bytes."""
    for size in (2**18, 2**12, 64):
        with contextlib.suppress(redis.OutOfMemoryError):
            for _ in range(4000):
                client.rpush("filler", b"x" * size)


async def test_a_full_server_refuses_new_work_and_still_finishes_old(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "buffer", append_fsync="everysec", max_memory_mib=16)
    url = server.start()
    try:
        driver = await Driver.take_over(await connect(url, "run"), ManualClock())
        group, done = new_group(0), new_group(1)
        await driver.complete(done)
        await driver.open(group)
        claimed = await driver.claim()
        with contextlib.closing(redis.Redis.from_url(url)) as filler:
            fill(filler)
            with pytest.raises(errors.BufferRefusedError):
                await driver.open(new_group(2))
            with pytest.raises(errors.BufferRefusedError):
                await driver.flush(Update(claimed[0], 0, segment(3)))
            assert await driver.states(*claimed) == ["leased", "leased"], "nothing half written"
            await driver.buffer.record_batch(driver.fence, batch(done))
            await driver.buffer.commit(driver.fence, 0, 1, "m")
            await driver.buffer.drop_trajectory(driver.fence, claimed[0], "no memory")
            filler.delete("filler")
        await driver.finish(claimed[1])
        await driver.buffer.close()
    finally:
        server.stop()


async def test_runs_on_one_server_do_not_meet(server: EmbeddedServer) -> None:
    one = await Driver.take_over(await connect(server.url, "run-1"), ManualClock())
    other = await Driver.take_over(await connect(server.url, "run-2"), ManualClock())
    await one.open(new_group())
    assert await other.claim() == []
    assert await other.buffer.groups(GroupState.OPEN) == []
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        names = {key.split(b":")[1] for key in client.scan_iter()}
    assert names == {b"run-1}", b"run-2}"}, "every key has its run's hash tag"
    await one.buffer.close()
    await other.buffer.close()


async def test_another_schema_version_is_refused(server: EmbeddedServer) -> None:
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        client.set("{crescendo:old}:schema", "0")
    with pytest.raises(errors.BufferStateError, match="schema version"):
        await connect(server.url, "old")
    for url in ("http://localhost", "nonsense"):
        with pytest.raises(errors.RequestError):
            await connect(url, "run")


async def test_a_claim_whose_answer_is_lost_is_answered_alike(server: EmbeddedServer) -> None:
    buffer = await connect(server.url, "run")
    fence = await buffer.acquire_epoch()
    await buffer.open_groups(fence, [new_group(samples=4)])
    arguments = ("w", 2, 5000, 1, 0, "nonce-1")
    first = await buffer._client.run("claim", fence, *arguments)
    assert await buffer._client.run("claim", fence, *arguments) == first
    assert (await buffer.counts())["trajectories.leased"] == 2
    assert await buffer._client.run("next_version", fence, 0, 0, 1, "n") == 1
    assert await buffer._client.run("next_version", fence, 0, 0, 1, "n") == 1
    await buffer.close()


async def test_the_startup_check(server: EmbeddedServer) -> None:
    await check_server(server.url)
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        assert [key for key in client.scan_iter() if b"check" in key] == [], "the check cleans up"
        client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(errors.BufferStateError, match="maxmemory-policy"):
            await check_server(server.url)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "no")
        with pytest.raises(errors.BufferStateError, match="append-only"):
            await check_server(server.url)
        client.config_set("appendonly", "yes")
        wait_until(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0)
        client.acl_setuser("reader", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-waitaof"])
        with pytest.raises(errors.EnvironmentProblem, match="may not"):
            await check_server(f"{server.url}?username=reader&password=x")
    with pytest.raises(errors.WorkerLostError):
        await check_server(f"{server.url}.none", patience_s=0.1)


def test_the_server_is_private_and_leaves_nothing(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "buffer")
    url = server.start()
    assert server.start() == url, "starting twice starts once"
    folder = Path(url.removeprefix("unix://")).parent
    assert folder.stat().st_mode & 0o077 == 0
    assert server.pid is not None
    assert not psutil.Process(server.pid).net_connections(kind="inet")
    pid = server.pid
    server.stop()
    assert not psutil.pid_exists(pid)
    assert not server.is_alive()
    server.stop()


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    server = EmbeddedServer(folder)
    socket = Path(server.start().removeprefix("unix://"))
    assert len(str(socket)) < 108
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    assert EmbeddedServer(folder).url == server.url, "the same folder has the same address"
    server.stop()
    assert not socket.parent.exists()
    socket.parent.mkdir(mode=0o755)
    socket.parent.chmod(0o755)
    with pytest.raises(errors.EnvironmentProblem, match="0700"):
        server.start()
    socket.parent.rmdir()


def test_two_servers_never_share_a_folder(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crescendo.buffer.embedded._LOCK_S", 0.2)
    second = EmbeddedServer(server.log_file.parent)
    monkeypatch.setattr(second, "_ping", lambda timeout_s: b"")
    with pytest.raises(errors.WorkerLostError, match="another server"):
        second.start(10)
    assert server.is_alive()


def test_a_torn_tail_is_cut_off_and_said(server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        client.set("kept", "1")
        client.set("last", "2")
    kill(server)
    log = append_only_file(server)
    log.write_bytes(log.read_bytes()[:-3])
    with contextlib.closing(redis.Redis.from_url(server.restart())) as client:
        assert client.get("kept") == b"1"
        assert client.get("last") is None
    assert 0 < server.cut_bytes < 60
    assert f"cut the last {server.cut_bytes} bytes" in caplog.text


def test_a_file_damaged_in_its_middle_is_named_and_left_alone(server: EmbeddedServer) -> None:
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        for number in range(100):
            client.set(f"key{number}", "x" * 100)
    kill(server)
    log = append_only_file(server)
    damaged = bytearray(log.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 300] = b"#" * 300
    log.write_bytes(damaged)
    with pytest.raises(errors.BufferStateError, match="left it as it is") as raised:
        server.restart()
    assert "valkey-check-aof --fix" in raised.value.fix
    assert str(log) in raised.value.fix
    assert log.read_bytes() == damaged
    repair = raised.value.fix.rpartition("program: `")[2].partition("`")[0]
    assert subprocess.run(repair, shell=True, input=b"y\n", capture_output=True).returncode == 0
    with contextlib.closing(redis.Redis.from_url(server.restart())) as client:
        assert client.get("key10") == b"x" * 100, "what stood before the damage is there"


def append_only_file(server: EmbeddedServer) -> Path:
    (found,) = (server.log_file.parent / "appendonlydir").glob("*.incr.aof")
    return found


async def test_a_damaged_segment_costs_its_trajectory_only(server: EmbeddedServer) -> None:
    driver = await Driver.take_over(await connect(server.url, "run"), ManualClock())
    group = new_group(samples=3)
    await driver.open(group)
    first, second, third = await driver.claim()
    await driver.finish(first, second, third)
    with contextlib.closing(redis.Redis.from_url(server.url)) as client:
        payload = f"{{crescendo:run}}:payload:{group.group_id}"
        segment_bytes = bytearray(client.hget(payload, "1:0") or b"")
        segment_bytes[50] ^= 1
        client.hset(payload, "1:0", bytes(segment_bytes))
        taken = await driver.buffer.claim_finished(driver.fence, limit=9, wait_s=0)
        assert [claim.trajectory.trajectory_id for claim in taken] == [first, third]
        assert client.hget(payload, "1:0") == bytes(segment_bytes), "the evidence stays"
    assert await driver.score(first, third) == [group.group_id]
    (loaded,) = await driver.buffer.load_groups([group.group_id])
    assert [one.state.value for one in loaded.trajectories] == ["scored", "dropped", "scored"]
    assert loaded.trajectories[1].drop_reason.startswith("damaged")
    await driver.buffer.close()


def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from crescendo.buffer import EmbeddedServer\n"
        "server = EmbeddedServer(Path(sys.argv[1])); server.start(); print(server.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "b")], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    successor = EmbeddedServer(tmp_path / "b")
    successor.start()
    successor.stop()
