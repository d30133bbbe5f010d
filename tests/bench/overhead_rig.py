"""The processes that bench_overhead puts around the real controller: engines and a trainer that only take time.

    python -m tests.bench.overhead_rig ROLE --spec-file PATH --ready-file PATH

The controller starts them as it starts the reward service. `rollout` is the real rollout service (claims, flights,
flushes) over `TimedEngine`, whose steps sleep and then give each response a run of tokens. `trainer` reads its batch
from the buffer as the real one does, then sleeps. `reward` and `executor` answer at once. Each writes how long it
slept, with the time, into `slept-<worker>.jsonl` in the run folder: that is the time that generation and training
take in the simulation, and all the rest is what controller and buffer add. The controller's phases go to
`phases.jsonl`.
"""

import argparse
import asyncio
import ctypes
import hashlib
import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from crescendo.buffer import connect
from crescendo.common.rpc import guarded, serve
from crescendo.common.runfolder import RunFolder, write_atomically
from crescendo.common.service import RunningService, ServiceSpec
from crescendo.common.telemetry.jsonl import JsonlWriter
from crescendo.controller.launch.cluster import Cluster
from crescendo.controller.loop.board import Board
from crescendo.proto.v1 import common_pb2, trainer_pb2, trainer_pb2_grpc
from crescendo.rollout import service as rollout_service
from crescendo.rollout.engine.base import EngineOutput, EngineRequest, Output, ScoreOutput
from tests.integration.light_services import LightService, LightTrainer, start_executor, start_reward

PLAN = "rig.json"
PHASES = "phases.jsonl"
PR_SET_PDEATHSIG = 1
SIGMA = 0.6  # of the logarithm of a response's length: a tail of three to four times the mean


@dataclass(frozen=True)
class Rig:
    """What the stand-ins do. step_s: sleep of an engine step, which gives step_tokens to each response."""

    mean_tokens: int
    step_tokens: int
    step_s: float
    train_s: float

    def write(self, run_folder: Path) -> None:
        """For the processes of a run."""
        (run_folder / PLAN).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, spec: ServiceSpec) -> "Rig":
        """Of the run that the process belongs to."""
        return cls(**json.loads((Path(spec.run_folder) / PLAN).read_text()))


class NoCluster(Cluster):
    """Without Ray: every service is a plain process here."""

    _connected = False

    @property
    def is_local(self) -> bool:
        """Process ids mean something here."""
        return True

    @property
    def is_connected(self) -> bool:
        """Whether `connect` was called."""
        return self._connected

    async def connect(self, scratch: Path, deadline_s: float) -> None:
        """Nothing to connect to."""
        self._connected = True

    async def shutdown(self) -> None:
        """Nothing to shut down."""


class TimedBoard(Board):
    """A board that writes when each phase began and ended."""

    def __init__(self, folder: RunFolder, *rest: Any, **more: Any) -> None:
        super().__init__(folder, *rest, **more)
        self._phases_file = JsonlWriter(folder.root / PHASES)

    @contextmanager
    def phase(self, name: str, iteration: int = 0) -> Iterator[None]:
        begin = time.time()
        with super().phase(name, iteration):
            yield
        self._phases_file.write({"name": name, "iteration": iteration, "begin": begin, "end": time.time()})


@dataclass
class _Running:
    request: EngineRequest
    left: int
    ends: bool


class TimedEngine:
    """The seam of rollout/engine/base.py; every step sleeps and gives each response a run of tokens."""

    def __init__(self, rig: Rig, slept: JsonlWriter, max_sequence_tokens: int) -> None:
        self.max_sequence_tokens = max_sequence_tokens
        self._rig = rig
        self._slept = slept
        self._running: dict[str, _Running] = {}
        self._scoring: dict[str, int] = {}
        self._tokens = [1 + number % 9 for number in range(rig.step_tokens)]
        self._log_probs = [-1.0] * rig.step_tokens

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._scoring)

    def add(self, request: EngineRequest) -> None:
        done = len(request.generated_token_ids)
        wanted = max(1, self._length(request.request_id) - done)
        self._running[request.request_id] = _Running(
            request, min(wanted, request.max_tokens), wanted <= request.max_tokens
        )

    def add_score(self, request_id: str, token_ids: Sequence[int]) -> None:
        self._scoring[request_id] = len(token_ids)

    def step(self) -> list[Output]:
        outputs: list[Output] = [ScoreOutput(one, [-1.0] * (count - 1)) for one, count in self._scoring.items()]  # type: ignore[arg-type]
        self._scoring.clear()
        if not self._running:
            return outputs
        begun = time.monotonic()
        time.sleep(self._rig.step_s)
        slept_s, own_s = time.monotonic() - begun, time.thread_time()
        for one, running in list(self._running.items()):
            count = min(running.left, self._rig.step_tokens)
            running.left -= count
            reason = common_pb2.FINISH_REASON_UNSPECIFIED
            if not running.left:
                reason = common_pb2.FINISH_REASON_STOP if running.ends else common_pb2.FINISH_REASON_LENGTH
                del self._running[one]
            outputs.append(EngineOutput(one, self._tokens[:count], self._log_probs[:count], reason))
        # A real engine makes its outputs too; waiting for the interpreter while the service works counts as overhead.
        self._slept.write({"at": time.time(), "seconds": slept_s + time.thread_time() - own_s})
        return outputs

    def abort(self, request_ids: Sequence[str]) -> None:
        for one in request_ids:
            self._running.pop(one, None)

    def load_weights(self, manifest: common_pb2.WeightManifest) -> list[int] | None:
        """Any weights will do."""
        return None

    def release(self, method: str) -> None:
        """Holds no device."""

    def acquire(self, *, cache: bool = True) -> None:
        """Needs no device."""

    def close(self) -> None:
        self._running.clear()

    def _length(self, request_id: str) -> int:
        """Log-normal with the plan's mean; the same whenever the trajectory is continued."""
        digest = hashlib.sha256(request_id.partition("#")[0].encode()).digest()
        first, second = (int.from_bytes(digest[i : i + 8], "little") / 2**64 for i in (0, 8))
        normal = math.sqrt(-2 * math.log(1 - first)) * math.cos(2 * math.pi * second)
        return max(1, int(self._rig.mean_tokens * math.exp(SIGMA * normal - SIGMA**2 / 2)))


class TimedTrainer(LightTrainer):
    """A trainer without a model whose step reads its batch and takes a while."""

    def __init__(self, spec: ServiceSpec, rig: Rig, slept: JsonlWriter) -> None:
        super().__init__(spec)
        self._rig = rig
        self._slept = slept

    @guarded
    async def Train(self, request: trainer_pb2.TrainRequest, context: Any) -> trainer_pb2.TrainResponse:
        batch = request.batch
        buffer = await connect(self._spec.buffer_url, self._spec.run_id)
        names = [name for group in batch.groups for name in group.trajectory_ids]
        found = await buffer.load_trajectories(names)
        await buffer.close()
        begun = time.monotonic()
        await asyncio.sleep(self._rig.train_s)
        self._slept.write({"at": time.time(), "seconds": time.monotonic() - begun})
        self._weights.seen.append(f"rl {batch.branch} {batch.iteration}")
        self._weights.version = batch.new_version
        return trainer_pb2.TrainResponse(
            weight_version=batch.new_version, num_trajectories=len(names), num_tokens=sum(t.num_tokens for t in found)
        )


async def _start(spec: ServiceSpec) -> RunningService:
    if spec.role == "reward":
        return await start_reward(spec)
    if spec.role == "executor":
        return await start_executor(spec)
    rig, slept = Rig.read(spec), JsonlWriter(Path(spec.run_folder) / f"slept-{spec.worker_id}.jsonl")
    if spec.role == "trainer":
        trainer = TimedTrainer(spec, rig, slept)
        names = ["crescendo.v1.TrainerService"]
        return LightService(
            await serve(
                lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(trainer, server),
                names,
                token=spec.token,
            )
        )
    with mock.patch.object(
        rollout_service, "make_engine", lambda name, settings: TimedEngine(rig, slept, settings.max_sequence_tokens)
    ):
        return await rollout_service.start(spec)


async def _live(spec: ServiceSpec, ready_file: Path) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    service = await _start(spec)
    write_atomically(ready_file, service.address)
    await stopping.wait()
    await service.stop(1.0)


def main() -> None:
    """Serves until SIGTERM; dies with the controller."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role")
    parser.add_argument("--spec-file", type=Path, required=True)
    parser.add_argument("--ready-file", type=Path, required=True)
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    asyncio.run(_live(ServiceSpec.from_json(arguments.spec_file.read_text()), arguments.ready_file))


if __name__ == "__main__":
    main()
