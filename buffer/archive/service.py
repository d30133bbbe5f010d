"""The archiver as a service: sweeps every few seconds, and at once when asked by `Flush`.

Started by entry point `archiver`. A sweep that fails is tried again with growing pauses; only a newer archiver
ends it. `stop` lets the page at hand end: killing it instead loses nothing.
"""

import asyncio
import logging
import os
import time
from dataclasses import asdict

import grpc
import psutil

from crescendo.buffer.archive.archiver import Archiver, Counts, RunFacts
from crescendo.buffer.archive.schema import Decode
from crescendo.buffer.archive.store import ArchiveStore
from crescendo.buffer.protocol import ExperienceBuffer
from crescendo.buffer.redis_buffer import connect
from crescendo.common.errors import ConfigError, CrescendoError, DataError, StaleFenceError
from crescendo.common.rpc import Server, guarded, serve
from crescendo.common.rpc.status import Context
from crescendo.common.service import ServiceSpec
from crescendo.common.tokenizer import Tokenizer
from crescendo.common.types import IntArray
from crescendo.proto.v1 import archive_pb2, archive_pb2_grpc, common_pb2

log = logging.getLogger(__name__)

SERVICE = "crescendo.v1.ArchiveService"
MAX_PAUSE_S = 60.0


class ArchiveServicer(archive_pb2_grpc.ArchiveServiceServicer):
    """The calls of ArchiveService, and the loop that sweeps."""

    def __init__(self, worker_id: str, archiver: Archiver, every_s: float) -> None:
        self._worker_id = worker_id
        self._archiver = archiver
        self._every_s = every_s
        self._last_error = ""
        self._started_s = self._progress_s = time.monotonic()
        self._steps = 0

    async def sweep_forever(self) -> None:
        """Sweeps until a newer archiver takes over; failures are told by GetStatus and the log."""
        pause_s = self._every_s
        while True:
            try:
                await self._archiver.sweep()
                pause_s, self._last_error = self._every_s, ""
            except StaleFenceError as error:
                log.warning("a newer archiver took over: %s", error)
                return
            except CrescendoError as error:
                pause_s = min(MAX_PAUSE_S, 2 * pause_s)
                self._last_error = str(error)
                log.warning("the sweep failed and is tried again in %.0f s: %s", pause_s, error)
            self._progress_s = time.monotonic()
            await asyncio.sleep(pause_s)

    @guarded
    async def GetStatus(
        self, request: archive_pb2.GetArchiveStatusRequest, context: Context
    ) -> archive_pb2.GetArchiveStatusResponse:
        """What it did, and how long ago it last got on."""
        now_s = time.monotonic()
        if self._archiver.steps != self._steps or self._archiver.is_idle:
            self._steps, self._progress_s = self._archiver.steps, now_s
        worker = common_pb2.WorkerStatus(
            worker_id=self._worker_id,
            role="archiver",
            state="serving",
            uptime_seconds=now_s - self._started_s,
            resident_bytes=psutil.Process().memory_info().rss,
            pid=os.getpid(),
            progress_age_seconds=now_s - self._progress_s,
        )
        counts = _counts(self._archiver.counts)
        return archive_pb2.GetArchiveStatusResponse(worker=worker, counts=counts, last_error=self._last_error)

    @guarded
    async def Flush(
        self, request: archive_pb2.FlushArchiveRequest, context: Context
    ) -> archive_pb2.FlushArchiveResponse:
        """Sweeps now; raises what kept the archive from taking everything."""
        await self._archiver.sweep()
        return archive_pb2.FlushArchiveResponse(counts=_counts(self._archiver.counts))


class ArchiveService:
    """A started archiver."""

    def __init__(self, server: Server, servicer: ArchiveServicer, buffer: ExperienceBuffer) -> None:
        self._server = server
        self._buffer = buffer
        self.loop = asyncio.create_task(servicer.sweep_forever())
        """Ends when a newer archiver took over; fails with what nobody foresaw."""

    @property
    def address(self) -> str:
        """host:port of its gRPC server."""
        return self._server.address

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets running ones end, ends the loop."""
        await self._server.stop(grace_s)
        self.loop.cancel()
        await asyncio.gather(self.loop, return_exceptions=True)
        await self._buffer.close()


async def start(spec: ServiceSpec) -> ArchiveService:
    """Starts the archiver. spec.options: url, every_s, chat_template (true or false).

    Raises ConfigError for wrong options or an archive that can't be opened, WorkerLostError without a buffer.
    """
    try:
        url, every_s = spec.options["url"], float(spec.options["every_s"])
        chat_template = spec.options.get("chat_template", "true") == "true"
    except (KeyError, ValueError) as error:
        raise ConfigError(f"the archiver's options {spec.options} are incomplete: {error!r}.") from None
    decode, decode_prompt = await asyncio.to_thread(_decoders, spec.model_path)
    facts = RunFacts(spec.run_id, chat_template, decode, decode_prompt)
    store = ArchiveStore(url)
    buffer = await connect(spec.buffer_url, spec.run_id)
    archiver = Archiver(buffer, store, facts)
    await archiver.take_over()
    servicer = ArchiveServicer(spec.worker_id, archiver, every_s)

    def register(server: grpc.aio.Server) -> None:
        archive_pb2_grpc.add_ArchiveServiceServicer_to_server(servicer, server)

    return ArchiveService(await serve(register, [SERVICE], token=spec.token), servicer, buffer)


def _decoders(model_path: str) -> tuple[Decode | None, Decode | None]:
    """Token ids to text, without and with special tokens; none when the model names no tokenizer."""
    if not model_path:
        return None, None
    try:
        tokenizer = Tokenizer.from_folder(model_path)
    except DataError as error:
        log.warning("the archive will hold token ids without text: %s", error)
        return None, None

    def decode(ids: IntArray) -> str:
        return tokenizer.decode(ids.tolist())

    def decode_prompt(ids: IntArray) -> str:
        return tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    return decode, decode_prompt


def _counts(counts: Counts) -> archive_pb2.ArchiveCounts:
    return archive_pb2.ArchiveCounts(**asdict(counts))
