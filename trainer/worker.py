"""What one rank can do: load, train, score, publish, save. The state of a trainer lives here.

Owned by service.py, which runs every method in one compute thread; on rank 0 through the gang, so that each
rank runs the same method on the same request. Methods are collective: all ranks must call them.
"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from google.protobuf.message import Message

from crescendo.buffer import ExperienceBuffer, connect
from crescendo.common import failpoints
from crescendo.common.config.load import load_resolved
from crescendo.common.errors import CheckpointError, CrescendoError, DeadlineError, RequestError
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import ServiceSpec
from crescendo.common.types import Trajectory
from crescendo.proto.v1 import common_pb2, trainer_pb2
from crescendo.trainer import checkpoint, experience, export, sft, step
from crescendo.trainer.algorithms import objective
from crescendo.trainer.channels import WeightChannel, open_channel
from crescendo.trainer.device import Device
from crescendo.trainer.experience import Limits, Prepared
from crescendo.trainer.gang import Gang
from crescendo.trainer.megatron.model import PolicyModel
from crescendo.trainer.megatron.parallel import Layout
from crescendo.trainer.optimizer import FlatAdamW
from crescendo.trainer.publish import publish, score
from crescendo.trainer.settings import TrainerSettings
from crescendo.trainer.stored import EXPORT, Stored
from crescendo.trainer.writer import Writer

DEFAULT_MAX_TOKENS = 8192
LOAD_TIMEOUT_S = 300.0

Emit = Callable[[trainer_pb2.TrainSftResponse], None]


class Loaded:
    """A model with its optimizer. phase: sft | rl | empty, what the moments belong to."""

    def __init__(self, model: PolicyModel, source: Path, *, distributed: bool) -> None:
        self.model = model
        self.source = source
        self.optimizer = FlatAdamW(model.parameters, model.kinds(), model.at, distributed=distributed)
        self.phase = ""
        self.keeps_moments = False

    def enter(self, phase: str) -> None:
        """Moments of another kind of training are forgotten."""
        if self.phase not in ("", phase):
            self.optimizer.reset()
        self.phase = phase


class TrainerWorker:
    """One rank. weight_version: of the weights in memory; emit: where reports of supervised steps go."""

    def __init__(self, spec: ServiceSpec, settings: TrainerSettings, at: Layout) -> None:
        self.spec = spec
        self.settings = settings
        self.at = at
        self.writer = Writer()
        self.weight_version = 0
        self._done_at = time.monotonic()
        self.emit: Emit = lambda _: None
        self.gang = Gang(at, self.execute, timeout_s=settings.collective_timeout_s)
        self.device = Device(at.device, lambda: self.writer.cpu_seconds)
        self.stored = Stored(spec, self._beat) if spec.store else None
        self._loaded: Loaded | None = None
        self._channels: dict[str, WeightChannel] = {}
        self._loop = asyncio.new_event_loop()
        self._buffer: ExperienceBuffer | None = None

    def execute(self, method: str, payload: bytes) -> Message:
        """Runs the method on its serialized request; raises RequestError for an unknown one."""
        if method not in METHODS:
            raise RequestError(f"unknown trainer command {method!r}.", field="method")
        request_type, handler = METHODS[method]
        answer = handler(self, request_type.FromString(payload))
        self._beat()
        return answer

    def _beat(self) -> None:
        self._done_at = time.monotonic()

    @property
    def loaded(self) -> Loaded:
        """The model; raises RequestError before LoadModel."""
        if self._loaded is None:
            raise RequestError("no model is loaded.", fix="Call LoadModel first.")
        return self._loaded

    @property
    def progressed_at(self) -> float:
        """Monotonic time of the last command or forward pass that ended."""
        return max(self._done_at, self._loaded.model.progressed_at if self._loaded else 0.0)

    @property
    def num_parameters(self) -> int:
        """Of the loaded model; 0 before."""
        return self._loaded.model.num_parameters if self._loaded else 0

    def load_model(self, request: trainer_pb2.LoadModelRequest) -> trainer_pb2.LoadModelResponse:
        """Builds the model of a folder and loads its weights."""
        source = Path(request.path or self.spec.model_path)
        self._loaded = None  # frees the old one first
        model = PolicyModel.from_folder(source, self._dtype(), self.at, self.settings.recompute)
        self._loaded = Loaded(model, source, distributed=self.settings.distributed_optimizer)
        self.device.manage(list(model.parameters.values()))
        self.weight_version = request.weight_version
        return trainer_pb2.LoadModelResponse(
            num_parameters=self.num_parameters, architecture=self._loaded.model.architecture.name
        )

    def _dtype(self) -> str:
        """Option `dtype`, or the run's model.dtype, or float32 outside a run."""
        config = RunFolder(Path(self.spec.run_folder)).config
        run = load_resolved(config).model.dtype if config.is_file() else "float32"
        return self.settings.dtype or run

    def train_sft(self, request: trainer_pb2.TrainSftRequest) -> trainer_pb2.TrainSftResponse:
        """Trains a chunk; reports go to `emit` as they come. Returns the last one."""
        self.device.require()
        loaded = self.loaded
        shape = loaded.model.shape
        samples = sft.samples_of(request, shape.max_positions, shape.vocab_size)
        loaded.enter("sft")
        loaded.keeps_moments = True
        max_tokens = request.max_tokens_per_micro_batch or DEFAULT_MAX_TOKENS
        last = trainer_pb2.TrainSftResponse()
        for last in sft.train(loaded.model, loaded.optimizer, samples, request, max_tokens):
            self.emit(last)
        self.weight_version = request.weight_version
        return last

    def train(self, request: trainer_pb2.TrainRequest) -> trainer_pb2.TrainResponse:
        """One recorded batch. Raises RequestError when the weights are not the batch's parent."""
        began = time.perf_counter()
        self.device.require()
        loaded, batch = self.loaded, request.batch
        if batch.parent_version != self.weight_version:
            raise RequestError(
                f"batch.parent_version is {batch.parent_version}; the trainer holds version {self.weight_version}.",
                field="batch.parent_version",
                fix="Load the checkpoint of the batch's parent, then train the recorded batches in order.",
            )
        wanted = objective(batch.algorithm)
        prepared = self._prepare(batch, wanted.normalize_std)
        load_seconds = time.perf_counter() - began
        loaded.enter("rl")
        loaded.keeps_moments = not batch.reset_optimizer
        max_tokens = batch.max_tokens_per_micro_batch or DEFAULT_MAX_TOKENS
        outcome = step.train(loaded.model, loaded.optimizer, prepared, batch, wanted, max_tokens)
        failpoints.reach("trainer.stepped")
        self.weight_version = batch.new_version
        return trainer_pb2.TrainResponse(
            weight_version=self.weight_version,
            metrics=outcome.metrics | {"seconds_load": load_seconds},
            num_tokens=outcome.num_tokens,
            num_trajectories=outcome.num_trajectories,
            seconds=time.perf_counter() - began,
            set_aside=prepared.set_aside,
        )

    def _prepare(self, batch: trainer_pb2.TrainBatch, normalize_std: bool) -> Prepared:
        """Reads the batch's trajectories. Ranks agree that all could before any collective starts."""
        shape = self.loaded.model.shape
        prepared = Prepared()
        failure: CrescendoError | None = None
        try:
            taught = [group for group in batch.groups if experience.teaches(group)]
            ids = [trajectory for group in taught for trajectory in group.trajectory_ids]
            found, reasons = self._loop.run_until_complete(asyncio.wait_for(self._read(ids), timeout=LOAD_TIMEOUT_S))
            limits = Limits(shape.max_positions, shape.vocab_size)
            prepared = experience.prepare(batch, found, reasons, limits, normalize_std=normalize_std)
        except TimeoutError:
            failure = DeadlineError(f"the buffer did not answer within {LOAD_TIMEOUT_S:.0f} s.")
        except CrescendoError as error:
            failure = error
        self.gang.agree(failure)
        return prepared

    async def _read(self, ids: list[str]) -> tuple[dict[str, Trajectory], dict[str, str]]:
        if self._buffer is None:
            self._buffer = await connect(self.spec.buffer_url, self.spec.run_id)
        return await experience.load(self._buffer, ids)

    def score_sequences(self, request: trainer_pb2.ScoreSequencesRequest) -> trainer_pb2.ScoreSequencesResponse:
        """Log-probabilities of given sequences, from the second token on."""
        self.device.require()
        sequences = [list(each.token_ids) for each in request.sequences]
        scores = score(self.loaded.model, sequences, request.temperature or 1.0, DEFAULT_MAX_TOKENS)
        return trainer_pb2.ScoreSequencesResponse(scores=[common_pb2.CanaryEcho(log_probs=each) for each in scores])

    def publish(self, request: trainer_pb2.PublishRequest) -> trainer_pb2.PublishResponse:
        """Puts the weights into a channel."""
        self.device.require(weights_only=True)
        if request.version != self.weight_version:
            raise RequestError(
                f"version is {request.version}; the trainer holds version {self.weight_version}.",
                field="version",
                fix="Publish the version that the last LoadModel, Train or LoadCheckpoint made.",
            )
        channel = self._channel(request.channel or "shm")
        return publish(self.loaded.model, channel if self.at.speaks else None, request)

    def _channel(self, name: str) -> WeightChannel:
        if name not in self._channels:
            threads = self.spec.threads or os.cpu_count() or 1
            self._channels[name] = open_channel(
                name,
                run_id=self.spec.run_id,
                run_folder=Path(self.spec.run_folder),
                threads=threads,
                token=self.spec.token,
                home=self.device,
            )
        return self._channels[name]

    def retire(self, request: trainer_pb2.RetireRequest) -> trainer_pb2.RetireResponse:
        """Frees older versions in every channel in use."""
        if self.at.speaks:
            for channel in self._channels.values():
                channel.retire(request.below_version)
        return trainer_pb2.RetireResponse()

    def save_checkpoint(self, request: trainer_pb2.SaveCheckpointRequest) -> trainer_pb2.SaveCheckpointResponse:
        """Writes a checkpoint; the answer lists all ranks' files.

        Asynchronous, it only copies, and the answer comes from finish_checkpoint.
        """
        self.device.require()
        loaded = self.loaded
        state = checkpoint.TrainerState(
            weight_version=self.weight_version,
            phase=loaded.phase,
            optimizer_steps=loaded.optimizer.step_count,
            has_moments=loaded.keeps_moments and loaded.optimizer.step_count > 0,
            architecture=loaded.model.architecture.name,
        )
        # A distributed optimizer gathers each part, which is let go once it is in host memory.
        copy = self.settings.async_checkpoint or self.settings.distributed_optimizer
        stored = self.stored
        root = stored.place(request.path) if stored else Path(request.path)
        prepared = checkpoint.prepare(root, loaded.model, loaded.optimizer, state, copy=copy)
        self.writer.start(request.path, (lambda: stored.written(root, prepared.write)) if stored else prepared.write)
        if self.settings.async_checkpoint:
            return trainer_pb2.SaveCheckpointResponse()
        return self.finish_checkpoint(request)

    def finish_checkpoint(self, request: trainer_pb2.SaveCheckpointRequest) -> trainer_pb2.SaveCheckpointResponse:
        """Waits until all ranks have written; the answer lists all ranks' files."""
        mine = trainer_pb2.SaveCheckpointResponse()
        failure: CrescendoError | None = None
        try:
            files, mine.seconds = self.writer.finish(request.path)
            mine.files.extend(files)
        except CrescendoError as error:
            failure = error
        self.gang.agree(failure)
        everyone = [
            trainer_pb2.SaveCheckpointResponse.FromString(raw) for raw in self.gang.gather(mine.SerializeToString())
        ]
        files = [file for each in everyone for file in each.files]
        return trainer_pb2.SaveCheckpointResponse(files=files, seconds=max(each.seconds for each in everyone))

    def load_checkpoint(self, request: trainer_pb2.LoadCheckpointRequest) -> trainer_pb2.LoadCheckpointResponse:
        """Restores a checkpoint into the loaded model."""
        self.device.require()
        loaded = self.loaded
        if not request.files:
            raise CheckpointError("the checkpoint's file list is empty.", field="files")
        root, files = self._verified(request.path, list(request.files))
        state = checkpoint.load(root, files, loaded.model, loaded.optimizer)
        loaded.phase, loaded.keeps_moments = state.phase, state.has_moments
        self.weight_version = request.weight_version or state.weight_version
        return trainer_pb2.LoadCheckpointResponse(weight_version=self.weight_version)

    def _verified(
        self, path: str, files: list[trainer_pb2.CheckpointFile]
    ) -> tuple[Path, list[trainer_pb2.CheckpointFile]]:
        """Where the files of a checkpoint lie, all as they should be: the ranks that can see them share the work."""
        rank, size = self.at.rank, self.at.world_size
        if self.stored is not None:
            machines = self.gang.gather(self.stored.machine.encode())
            here = [each for each, machine in enumerate(machines) if machine == machines[rank]]
            rank, size = here.index(rank), len(here)
        root = Path(path) if self.stored is None else self.stored.place(path)
        failure: CrescendoError | None = None
        try:
            if self.stored is None:
                checkpoint.verify(root, files, rank, size)
            else:
                self.stored.bring(root, files[rank::size])
        except CrescendoError as error:
            failure = error
        self.gang.agree(failure)
        return root, files

    def export_model(self, request: trainer_pb2.ExportModelRequest) -> trainer_pb2.ExportModelResponse:
        """Writes a Hugging Face folder."""
        self.device.require()
        loaded = self.loaded
        root = self.stored.export if self.stored else Path(request.path)
        files = export.export(loaded.model, loaded.source, root, request.dtype)
        failure: CrescendoError | None = None
        try:
            if self.stored is not None:
                self.stored.upload(root, files, EXPORT)
        except CrescendoError as error:
            failure = error
        self.gang.agree(failure)
        return trainer_pb2.ExportModelResponse(files=files)

    def release_device(
        self, request: trainer_pb2.TrainerReleaseDeviceRequest
    ) -> trainer_pb2.TrainerReleaseDeviceResponse:
        """Lets go of the device until acquire_device."""
        buffers = self._loaded.optimizer.buffers if self._loaded else []
        weights = list(self._loaded.model.parameters.values()) if self._loaded else []
        return trainer_pb2.TrainerReleaseDeviceResponse(device=self.device.release(request.method, buffers, weights))

    def acquire_device(
        self, request: trainer_pb2.TrainerAcquireDeviceRequest
    ) -> trainer_pb2.TrainerAcquireDeviceResponse:
        """Takes the device again."""
        return trainer_pb2.TrainerAcquireDeviceResponse(device=self.device.acquire())

    def close(self) -> None:
        """Frees channels and the buffer's connection; a checkpoint that is being written stays half written."""
        self.writer.close()
        for channel in self._channels.values():
            channel.close()
        if self._buffer is not None:
            self._loop.run_until_complete(asyncio.wait_for(self._buffer.close(), timeout=10.0))
        self._loop.close()

    @staticmethod
    def resident_bytes() -> int:
        """Memory of this process."""
        return int(psutil.Process().memory_info().rss)


METHODS: dict[str, tuple[type[Message], Callable[[TrainerWorker, Any], Message]]] = {
    "LoadModel": (trainer_pb2.LoadModelRequest, TrainerWorker.load_model),
    "TrainSft": (trainer_pb2.TrainSftRequest, TrainerWorker.train_sft),
    "Train": (trainer_pb2.TrainRequest, TrainerWorker.train),
    "ScoreSequences": (trainer_pb2.ScoreSequencesRequest, TrainerWorker.score_sequences),
    "Publish": (trainer_pb2.PublishRequest, TrainerWorker.publish),
    "Retire": (trainer_pb2.RetireRequest, TrainerWorker.retire),
    "SaveCheckpoint": (trainer_pb2.SaveCheckpointRequest, TrainerWorker.save_checkpoint),
    "FinishCheckpoint": (trainer_pb2.SaveCheckpointRequest, TrainerWorker.finish_checkpoint),
    "LoadCheckpoint": (trainer_pb2.LoadCheckpointRequest, TrainerWorker.load_checkpoint),
    "ExportModel": (trainer_pb2.ExportModelRequest, TrainerWorker.export_model),
    "ReleaseDevice": (trainer_pb2.TrainerReleaseDeviceRequest, TrainerWorker.release_device),
    "AcquireDevice": (trainer_pb2.TrainerAcquireDeviceRequest, TrainerWorker.acquire_device),
}
