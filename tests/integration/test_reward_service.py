"""Both services as real processes: scores, refusals, many clients, secrets, and what is left when they end."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from crescendo.common.errors import ConfigError, OverloadError, RequestError
from crescendo.common.rpc import Client, Endpoint
from crescendo.proto.v1 import common_pb2, reward_pb2, reward_pb2_grpc
from crescendo.reward_service import executor, reward
from tests.integration.reward_processes import (
    EXACT,
    MATH,
    SECRET,
    TOKEN,
    RewardProcesses,
    is_running,
    score_item,
    spec_of,
    wait_until,
)

OPTIONS = {"workers": "2", "regrade_share": "0.05", "scorers": "exact_match,math_answer", "max_queued_items": "4000"}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardProcesses]:
    running = RewardProcesses(tmp_path_factory.mktemp("reward"), OPTIONS)
    yield running
    pids = [process.pid for process in running.descendants()]
    assert len(pids) >= 3
    assert running.stop() == (0, 0)
    wait_until(lambda: not any(is_running(pid) for pid in pids), 10.0)


async def score(
    client: Client[reward_pb2_grpc.RewardServiceStub], items: list[reward_pb2.ScoreItem]
) -> list[reward_pb2.ScoreResult]:
    response = await client.call(client.stub.Score, reward_pb2.ScoreRequest(items=items), timeout_s=60.0)
    return list(response.results)


async def test_a_batch_of_the_quick_start(services: RewardProcesses) -> None:
    client = services.client()
    items = [score_item(str(i), f"a1=4b2=6#{i % 10}$", "9", EXACT) for i in range(256)]
    await score(client, items)
    times_s = []
    for _ in range(5):
        started_s = time.perf_counter()
        results = await score(client, items)
        times_s.append(time.perf_counter() - started_s)
    await client.close()
    assert [r.item_id for r in results] == [item.item_id for item in items]
    assert [r.components[0].raw for r in results] == [float(i % 10 == 9) for i in range(256)]
    # Under 30 ms on a machine of its own; a busy one gets room.
    assert min(times_s) < 0.5


async def test_a_chain_gives_one_component_a_link(services: RewardProcesses) -> None:
    client = services.client()
    chain = [*MATH, reward_pb2.ScorerSpec(name="format", weight=0.1)]
    right = score_item("right", r"<think>2/4</think><answer>\boxed{\frac{1}{2}}</answer>", "0.5", chain)
    wrong = score_item("wrong", r"\boxed{\frac{1}{3}}", "0.5", chain)
    first, second = await score(client, [right, wrong])
    await client.close()
    assert [(c.name, c.raw, c.weight) for c in first.components] == [("math_answer", 1.0, 1.0), ("format", 1.0, 0.1)]
    assert [c.verdict for c in second.components] == [common_pb2.VERDICT_WRONG] * 2
    assert (first.boundary, first.jail) == ("shared-kernel", "process")


async def test_group_rewards(services: RewardProcesses) -> None:
    client = services.client()
    lengths = (10, 20, 30)
    members = [reward_pb2.GroupMember(item_id=f"m{n}", num_tokens=n, correct=n < 30) for n in lengths]
    request = reward_pb2.ScoreGroupsRequest(
        groups=[reward_pb2.GroupFacts(group_id="g", members=members)] * 2,
        chain=[reward_pb2.ScorerSpec(name="length_k15", weight=0.5)],
    )
    response = await client.call(client.stub.ScoreGroups, request, timeout_s=10.0)
    await client.close()
    assert [r.item_id for r in response.results] == ["m10", "m20", "m30"] * 2
    assert [r.components[0].raw for r in response.results] == [0.5, 0.0, -0.5] * 2


async def test_wrong_requests_are_refused_by_name(services: RewardProcesses) -> None:
    stranger, client = services.client("wrong"), services.client()
    item = score_item("a", "#9$", "9", EXACT)
    with pytest.raises(RequestError, match="token"):
        await score(stranger, [item])
    for chain, named in (
        ([reward_pb2.ScorerSpec(name="nonsense")], "nonsense"),
        ([reward_pb2.ScorerSpec(name="exact_match", options={"mark": "#"})], "mark"),
        ([], "empty"),
    ):
        with pytest.raises(RequestError, match=named):
            await score(client, [item, score_item("b", "", "9", chain)])
    request = reward_pb2.ScoreRequest(items=[item], deadline_seconds=-1.0)
    with pytest.raises(RequestError, match="deadline_seconds"):
        await client.call(client.stub.Score, request, timeout_s=10.0)
    with pytest.raises(OverloadError) as caught:
        await score(client, [item] * 4001)
    assert caught.value.retry_after_s > 0
    (result,) = await score(client, [score_item("large", b"x" * (17 << 20), "9", EXACT)])
    assert result.fault.code == "RequestError"
    assert not result.components
    await stranger.close()
    await client.close()


async def test_twenty_clients_at_once(services: RewardProcesses) -> None:
    async def one_client(number: int) -> None:
        client = services.client()
        for turn in range(5):
            names = [f"{number}-{turn}-{i}" for i in range(20)]
            golds = [str((number + i) % 7) for i in range(20)]
            items = [score_item(n, f"#{number % 7}$", g, EXACT) for n, g in zip(names, golds, strict=True)]
            items.append(score_item("math", rf"\boxed{{\frac{{{number + 1}}}{{2}}}}", f"{number + 1}/2"))
            results = await score(client, items)
            assert [r.item_id for r in results] == [*names, "math"]
            assert [r.components[0].raw for r in results] == [float(g == str(number % 7)) for g in golds] + [1.0]
        await client.close()

    await asyncio.gather(*(one_client(number) for number in range(20)))


async def test_status(services: RewardProcesses) -> None:
    client, below = services.client(), services.executor_client()
    await score(client, [score_item(str(i), "#9$", "9", EXACT) for i in range(200)])
    status = await client.call(client.stub.GetStatus, reward_pb2.GetRewardStatusRequest(), timeout_s=10.0)
    for _ in range(100):  # workers for second gradings come and go
        pool = await below.call(below.stub.GetStatus, reward_pb2.GetExecutorStatusRequest(), timeout_s=10.0)
        if pool.num_workers == 2:
            break
        await asyncio.sleep(0.1)
    await client.close()
    await below.close()
    assert {"math_answer", "exact_match", "format", "length_k15", "reasoning_gym"} <= set(status.scorers)
    assert (status.worker.role, status.worker.pid) == ("reward", services.reward.pid)
    assert status.num_scored >= 200
    assert status.num_disagreements == 0
    assert (pool.num_workers, pool.boundary, pool.jail) == (2, "shared-kernel", "process")
    assert (pool.worker.role, pool.worker.pid) == ("executor", services.executor.pid)


def test_no_secret_reaches_what_reads_model_text(services: RewardProcesses) -> None:
    assert SECRET.encode() in Path(f"/proc/{services.reward.pid}/environ").read_bytes()
    processes = [psutil.Process(services.executor.pid), *services.descendants()]
    for process in processes:
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            command = " ".join(process.cmdline())
        except (PermissionError, FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
            continue  # not dumpable, so nobody of this user can read it; or a worker that was just recycled
        assert SECRET.encode() not in environment
        assert TOKEN.encode() not in environment
        assert TOKEN not in command
        names = {part.split(b"=")[0] for part in environment.split(b"\0") if part}
        assert not {name for name in names if b"SECRET" in name or b"TOKEN" in name or b"KEY" in name}


def is_confined(pid: int) -> bool:
    """Posture of a worker, from outside; false while it is still putting it on, or is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        descriptors = sorted(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError:
        descriptors = [0, 1, 2, 3]  # not dumpable, and this is not root: the kernel hides them
    except (FileNotFoundError, ProcessLookupError):
        return False
    status = {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}
    zeros = ("Max file size", "Max core file size", "Max processes")
    limits_hold = all(any(line.startswith(name) and " 0 " in line for line in limits) for name in zeros)
    has_no_rights = (status["NoNewPrivs"], int(status["CapEff"], 16), int(status["CapPrm"], 16)) == ("1", 0, 0)
    return limits_hold and has_no_rights and descriptors[:3] == [0, 1, 2] and len(descriptors) == 4


def test_workers_are_confined(services: RewardProcesses) -> None:
    zygote = psutil.Process(services.executor.pid).children()[0]

    def are_confined() -> bool:
        pids = [worker.pid for worker in zygote.children()]
        return len(pids) == 2 and all(is_confined(pid) for pid in pids)

    wait_until(are_confined, 20.0)  # workers for second gradings come and go
    assert not is_confined(services.executor.pid)


async def test_an_executor_with_a_secret_does_not_start() -> None:
    with pytest.raises(RequestError, match="token"):
        await executor.start(spec_of("reward", {}))


async def test_a_reward_process_needs_a_token_and_an_executor() -> None:
    with pytest.raises(ConfigError, match="address"):
        await reward.start(spec_of("reward", {}))
    with pytest.raises(ConfigError, match="token"):
        await reward.start(spec_of("executor", {}, "127.0.0.1:1"))
    with pytest.raises(ConfigError, match="wrokers"):
        await reward.start(spec_of("reward", {"wrokers": "1"}, "127.0.0.1:1"))


def test_a_damaged_spec_is_reported(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{")
    command = [sys.executable, "-m", "crescendo.reward_service", "reward"]
    command += ["--spec-file", str(tmp_path / "spec.json"), "--ready-file", str(tmp_path / "ready")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == ConfigError.exit_code
    assert "spec.json" in done.stderr


LAUNCHER = """
import sys, time
from pathlib import Path
from tests.integration.reward_processes import launch, spec_of
spec = spec_of("executor", {"workers": "2", "scorers": "exact_match"})
process, address = launch("executor", spec, Path(sys.argv[1]))
print(process.pid, flush=True)
time.sleep(300)
"""


def test_everything_dies_with_the_launcher(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)], stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    with launcher.stdout:
        pid = int(launcher.stdout.readline())
    pids = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    assert len(pids) == 4
    launcher.send_signal(signal.SIGKILL)
    launcher.wait(10)
    wait_until(lambda: not any(is_running(each) for each in pids), 10.0)


async def test_draining_loses_nothing() -> None:
    options = {"workers": "1", "scorers": "math_answer", "item_deadline_s": "1.5", "regrade_share": "1.0"}
    below = await executor.start(spec_of("executor", options))
    above = await reward.start(spec_of("reward", options, below.address))
    client = Client(Endpoint(above.address, TOKEN), reward_pb2_grpc.RewardServiceStub)
    items = [score_item("a", r"\boxed{1}", "1"), score_item("slow", r"\boxed{99999999999!}", "1")]
    items.append(score_item("b", r"\boxed{1}", "1"))
    running = asyncio.create_task(score(client, items))
    await asyncio.sleep(0.3)
    await above.stop(30.0)
    verdicts = [result.components[0].verdict for result in await running]
    assert verdicts == [common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_TIMEOUT, common_pb2.VERDICT_CORRECT]
    await client.close()
    await below.stop(5.0)
