"""Supervisor: what counts as lost, how fast, and what is repaired without anybody asking."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from crescendo.common.config.schema import Config
from crescendo.common.errors import DeadlineError, WorkerLostError, WorkerStartError
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import ServiceSpec
from crescendo.controller.launch import Fleet, Supervisor, Worker, supervisor
from crescendo.controller.launch.supervisor import Attempts
from crescendo.proto.v1 import common_pb2


class Service:
    """A process with its stub: answers, is silent, or answers without progress."""

    def __init__(self, worker_id: str, role: str) -> None:
        self.status = common_pb2.WorkerStatus(worker_id=worker_id, role=role, state="idle")
        self.silent = self.ended = self.killed = False
        self.stub = self
        spec = ServiceSpec(role=role, worker_id=worker_id, run_folder="", run_id="r", token="")
        self.worker = Worker(spec, state="ready", client=cast(Any, self))

    async def call(self, method: Any, request: Any, *, timeout_s: float, attempts: int) -> Any:
        if self.silent:
            await asyncio.sleep(timeout_s)
            raise DeadlineError("no answer.")
        return method

    async def stream(self, method: Any, request: Any, *, timeout_s: float) -> Any:
        yield method
        await asyncio.sleep(60)

    @property
    def GetStatus(self) -> Any:
        @dataclass
        class Answer:
            worker: common_pb2.WorkerStatus

        return Answer(self.status)

    Train = Score = TrainSft = GetStatus


@dataclass
class FakeServer:
    alive: bool = True
    pid: int | None = 7

    def is_alive(self, timeout_s: float) -> bool:
        return self.alive


@pytest.fixture(autouse=True)
def much_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "has_room", lambda folder: True)


@dataclass
class FakeFleet:
    """What Supervisor asks of a Fleet."""

    services: list[Service]
    server: FakeServer | None = None
    failures: list[Exception] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    folder: RunFolder = field(default_factory=lambda: RunFolder(Path.cwd()))
    ray_lost: str = ""

    @property
    def workers(self) -> dict[str, Worker]:
        return {one.worker.worker_id: one.worker for one in self.services}

    @property
    def gang(self) -> list[Worker]:
        return [one.worker for one in self.services if one.worker.role == "trainer"]

    @property
    def engines(self) -> list[Worker]:
        return [one.worker for one in self.services if one.worker.role == "rollout"]

    @property
    def cluster(self) -> "FakeFleet":
        return self

    def why_lost(self) -> str:
        return self.ray_lost

    def is_gone(self, worker: Worker) -> bool:
        return self.of(worker).ended

    def kill(self, worker: Worker) -> None:
        self.of(worker).killed = True

    async def answers(self, worker: Worker, timeout_s: float) -> bool:
        return not self.of(worker).silent

    async def ensure_reward(self) -> None:
        if self.failures:
            raise self.failures.pop()
        self.repaired.append("reward")

    async def replace_buffer(self) -> None:
        assert self.server is not None
        self.server.alive, self.server.pid = True, 8
        self.repaired.append("buffer")

    def of(self, worker: Worker) -> Service:
        return next(one for one in self.services if one.worker is worker)


class Watched:
    """A supervisor over services, with the events that it told."""

    def __init__(self, *services: Service, server: FakeServer | None = None) -> None:
        self.config = Config()
        self.config.deadlines.heartbeat_s, self.config.deadlines.progress_s = 0.3, 5.0
        self.config.recovery.backoff_s, self.config.recovery.attempts = 0.01, 3
        self.fleet = FakeFleet(list(services), server)
        self.events: list[tuple[str, str]] = []
        self.supervisor = Supervisor(cast(Fleet, self.fleet), self.config, self.tell)

    def tell(self, kind: str, message: str, **more: Any) -> None:
        self.events.append((kind, message))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    async def until(self, condition: Any) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, self.events
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOOK_EVERY_S", 0.02)


async def test_a_process_that_ended_is_lost_at_once_and_its_calls_end() -> None:
    engine = Service("rollout-0", "rollout")
    watched = Watched(engine)
    engine.silent = True
    call = asyncio.create_task(engine.worker.call("Train", None, timeout_s=60))
    await asyncio.sleep(0.01)
    engine.ended = True
    await watched.supervisor.look()
    with pytest.raises(WorkerLostError, match=r"rollout-0\.Train: .*its process ended"):
        await call
    assert engine.worker.state == "lost"
    assert watched.events == [("worker.lost", "rollout-0: its process ended")]


async def test_a_stream_of_a_lost_worker_ends_too() -> None:
    trainer = Service("trainer-0", "trainer")
    answers = aiter(trainer.worker.stream("TrainSft", None, timeout_s=60))
    await anext(answers)
    waiting = asyncio.create_task(anext(answers))
    await asyncio.sleep(0.01)
    trainer.worker.lose("it was stopped")
    with pytest.raises(WorkerLostError, match="it was stopped"):
        await waiting


async def test_a_silent_rank_costs_the_gang_after_the_heartbeat_deadline() -> None:
    ranks = [Service("trainer-0", "trainer"), Service("trainer-1", "trainer")]
    ranks[1].worker.client = None  # it serves no gRPC: its actor is asked
    engine = Service("rollout-0", "rollout")
    watched = Watched(*ranks, engine)
    ranks[1].silent = True
    begun = time.monotonic()
    watched.supervisor.start()
    await watched.until(lambda: watched.events)
    await asyncio.sleep(0.1)
    await watched.supervisor.stop()
    assert time.monotonic() - begun >= 0.2
    assert [rank.worker.state for rank in ranks] == ["lost", "lost"]
    assert all(rank.killed for rank in ranks)
    assert engine.worker.is_ready


async def test_one_that_answers_without_progress_is_lost_and_one_that_waits_for_the_buffer_is_not() -> None:
    hung, waiting = Service("rollout-0", "rollout"), Service("rollout-1", "rollout")
    hung.status.progress_age_seconds = waiting.status.progress_age_seconds = 6.0
    waiting.status.state = "buffer_refuses"
    watched = Watched(hung, waiting)
    await watched.supervisor.look()
    assert (hung.worker.state, waiting.worker.state) == ("lost", "ready")
    assert hung.killed
    assert "no progress for 6 s" in watched.events[0][1]


async def test_an_idle_reward_service_makes_no_progress_and_lives() -> None:
    reward = Service("reward-0", "reward")
    reward.status.progress_age_seconds = 1000.0
    watched = Watched(reward)
    await watched.supervisor.look()
    assert reward.worker.is_ready


async def test_a_controller_that_stood_still_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Service("rollout-0", "rollout")
    watched = Watched(engine)
    watched.supervisor._looked_at = time.monotonic() - 1000.0
    watched.supervisor._silences["rollout-0"] = supervisor._Silence(0.29, engine.worker)
    engine.silent = True
    await watched.supervisor._look_at_everything()
    assert engine.worker.is_ready


async def test_the_reward_service_is_repaired_with_back_off_and_each_attempt_is_told() -> None:
    reward = Service("reward-0", "reward")
    watched = Watched(reward)
    watched.fleet.failures = [WorkerStartError("no port."), WorkerStartError("no memory.")]
    reward.ended = True
    await watched.supervisor.look()
    assert watched.fleet.repaired == ["reward"]
    assert watched.kinds() == [
        "worker.lost", "reward.replacing", "reward.replace_failed", "reward.replacing", "reward.replace_failed",
        "reward.replacing", "worker.replaced",
    ]  # fmt: skip
    assert watched.supervisor.gave_up is None


async def test_what_cannot_be_repaired_is_given_up_with_its_reason() -> None:
    reward = Service("reward-0", "reward")
    watched = Watched(reward)
    watched.fleet.failures = [WorkerStartError(f"no port {n}.") for n in range(9)]
    reward.ended = True
    await watched.supervisor.look()
    assert watched.kinds()[-1] == "reward.given_up"
    assert watched.kinds().count("reward.replacing") == 3
    assert "no port 6" in str(watched.supervisor.gave_up)


async def test_what_is_lost_again_and_again_without_progress_is_given_up() -> None:
    reward = Service("reward-0", "reward")
    watched = Watched(reward)

    async def replace() -> None: ...

    for _ in range(3):
        await watched.supervisor.insist("reward", "the reward service", replace)
    with pytest.raises(WorkerLostError, match="lost 3 times in a row"):
        await watched.supervisor.insist("reward", "the reward service", replace)
    assert watched.supervisor.given_up.is_set()
    watched.supervisor.progressed()
    await watched.supervisor.insist("reward", "the reward service", replace)


@pytest.mark.parametrize("pid", [None, 7])
async def test_a_dead_or_silent_valkey_is_started_again(pid: int | None) -> None:
    server = FakeServer(alive=False, pid=pid)
    watched = Watched(server=server)
    watched.supervisor.start()
    await watched.until(lambda: watched.fleet.repaired)
    await watched.supervisor.stop()
    assert watched.kinds()[:2] == ["buffer.lost", "buffer.replacing"]
    assert ("its process ended" in watched.events[0][1]) == (pid is None)


async def test_a_valkey_that_a_full_disk_ended_is_started_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(server=FakeServer(alive=False, pid=None))
    room: list[bool] = [False] * 5
    monkeypatch.setattr(supervisor, "has_room", lambda folder: room.pop() if room else True)
    watched.supervisor.start()
    await watched.until(lambda: watched.fleet.repaired)
    await watched.supervisor.stop()
    assert watched.kinds() == ["buffer.lost", "buffer.no_room", "buffer.replacing", "worker.replaced"]
    assert watched.supervisor.attempts("buffer").count == 1


async def test_a_lost_raylet_costs_trainer_and_engines() -> None:
    services = [Service("trainer-0", "trainer"), Service("rollout-0", "rollout"), Service("reward-0", "reward")]
    watched = Watched(*services)
    watched.fleet.ray_lost = "Ray's process 12 is zombie"
    await watched.supervisor.look()
    assert [one.worker.state for one in services] == ["lost", "lost", "ready"]


async def test_a_worker_that_lets_a_deadline_pass_is_lost_but_not_for_its_status() -> None:
    trainer = Service("trainer-0", "trainer")
    trainer.silent = True
    with pytest.raises(DeadlineError):
        await trainer.worker.call("GetStatus", None, timeout_s=0.05)
    assert trainer.worker.is_ready
    with pytest.raises(DeadlineError):
        await trainer.worker.call("Train", None, timeout_s=0.05)
    assert trainer.worker.state == "lost"


async def test_a_look_does_not_end_before_it_is_sure() -> None:
    refused = Service("trainer-0", "trainer")  # its socket is gone, its process not yet
    watched = Watched(refused)
    refused.silent = True
    await watched.supervisor.look()
    assert refused.worker.state == "lost"


async def test_whoever_declares_a_loss_it_is_told_once_and_killed() -> None:
    trainer, other = Service("trainer-0", "trainer"), Service("trainer-1", "trainer")
    watched = Watched(trainer, other)
    trainer.worker.lose("it did not answer Train within 9 s")
    await watched.supervisor.look()
    await watched.supervisor.look()
    assert watched.events == [("worker.lost", "trainer-0: it did not answer Train within 9 s")]
    assert (trainer.killed, other.killed) == (True, True)


def test_attempts_wait_longer_each_time_up_to_a_limit() -> None:
    attempts = Attempts(limit=5, first_s=1.0, longest_s=5.0)
    assert [attempts.next_wait_s() for _ in range(5)] == [0.0, 1.0, 2.0, 4.0, 5.0]
    assert attempts.exhausted
    attempts.forget()
    assert (attempts.exhausted, attempts.total) == (False, 5)
