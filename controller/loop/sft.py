"""The supervised step: demonstrations to the trainer, in chunks, with progress and commits."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from crescendo.common import failpoints
from crescendo.common.config.schema import Config, SftStepConfig
from crescendo.controller.launch import Fleet
from crescendo.controller.loop.batches import learning_rate_message
from crescendo.controller.loop.board import Board
from crescendo.controller.loop.control import Control
from crescendo.controller.loop.lease import DeviceLease
from crescendo.controller.loop.state import RunState
from crescendo.proto.v1 import trainer_pb2

CHUNK_STEPS = 20
METRICS_EVERY_STEPS = 10


@dataclass
class SupervisedStep:
    """Runs one `sft` step of the run file from where the state stands."""

    config: Config
    step: SftStepConfig
    fleet: Fleet
    lease: DeviceLease
    board: Board
    control: Control
    state: RunState

    async def run(
        self, demonstrations: Iterator[trainer_pb2.SftExample], version: int, commit: Callable[[], Awaitable[None]]
    ) -> None:
        """Trains until the step's end or a stop; `commit` is awaited where commits are due.

        demonstrations: from the first step not done yet.
        """
        begun = time.monotonic()
        first = self.state.sft_steps
        batch_size = self.step.batch_size
        with self.board.phase("sft"):
            while self.state.sft_steps < self.step.steps and not self.control.stop_requested:
                await self.control.wait_while_paused()
                steps = min(CHUNK_STEPS, self.step.steps - self.state.sft_steps)
                chunk = await asyncio.to_thread(lambda n: list(itertools.islice(demonstrations, n)), steps * batch_size)
                await self._train(chunk, version)
                failpoints.reach("sft.trained")
                self.state.sft_steps += steps
                done = self.state.sft_steps - first
                left = self.step.steps - self.state.sft_steps
                self.board.status.eta_seconds = (time.monotonic() - begun) / done * left
                every = self.step.commit_every_steps
                due = every and self.state.sft_steps % every < steps
                if left and (due or self.control.wants_commit):
                    await commit()
                    self.control.committed()

    async def _train(self, chunk: list[trainer_pb2.SftExample], version: int) -> None:
        first = self.state.sft_steps
        request = trainer_pb2.TrainSftRequest(
            fence=self.lease.fence,
            idempotency_key=f"sft-{first}-{len(chunk)}",
            examples=chunk,
            batch_size=self.step.batch_size,
            first_step=first,
            learning_rate=learning_rate_message(self.step.learning_rate, self.step.steps),
            optimizer=trainer_pb2.AdamW(**vars(self.step.optimizer)),
            max_tokens_per_micro_batch=self.config.trainer.max_tokens_per_micro_batch,
            weight_version=version,
        )
        async for answer in self.fleet.trainer.stream("TrainSft", request, timeout_s=self.config.deadlines.train_s):
            self.board.status.phase_progress = (answer.step + 1) / self.step.steps
            self.board.status.tokens_per_second = answer.num_tokens / max(answer.seconds, 1e-9)
            if (answer.step + 1) % METRICS_EVERY_STEPS == 0:
                row = {"sft_step": answer.step + 1, "sft_loss": answer.loss, "grad_norm": answer.grad_norm}
                self.board.metrics("sft", row | {"tokens_per_second": self.board.status.tokens_per_second})
