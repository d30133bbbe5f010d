"""The ranks of a trainer as one: rank 0 is told what to do and tells the others.

    rank 0                                   other ranks
    `lead(method, request)`                  `follow()`: loop until stopped or broken
      broadcast name and request  ------->   receive, parse
      execute                                execute                (collectives of training run in here)
      `agree`: exchange outcomes  <------->  `agree`

Messages are protobuf bytes in uint8 tensors over a gloo group of their own: nothing is unpickled. A request that
every rank refuses alike leaves the gang healthy. Anything else breaks it: the rank that failed closes its
connections, so that ranks waiting for it in a collective fail at once instead of at their time-out, and the
gang answers no more; the controller restarts it whole. Idle followers wait for a beat, which rank 0 sends
every BEAT_S.

Used by service.py; every method runs in the compute thread.
"""

import logging
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from google.protobuf.message import Message

from crescendo.common.errors import CrescendoError, WorkerLostError
from crescendo.common.rpc import from_detail, to_detail
from crescendo.proto.v1 import common_pb2
from crescendo.trainer.megatron import parallel
from crescendo.trainer.megatron.parallel import Layout

log = logging.getLogger(__name__)

BEAT_S = 20.0
STOP = "stop"
BEAT = "beat"
_NAME_BYTES = 32
_OUTCOME_BYTES = 2048

Execute = Callable[[str, bytes], Message]


class Gang:
    """One rank's end. execute: runs a method of the worker on a serialized request."""

    def __init__(self, at: Layout, execute: Execute, *, timeout_s: float) -> None:
        self._at = at
        self._execute = execute
        self._group: dist.ProcessGroup | None = None
        self.broken = ""
        if at.world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def lead(self, method: str, request: Message) -> Message:
        """Runs a method on every rank and returns rank 0's answer.

        Raises what all ranks raised alike, or WorkerLostError when the gang broke.
        """
        if self.broken:
            raise WorkerLostError(f"the trainer gang is broken: {self.broken}", fix="Restart the gang.")
        payload = request.SerializeToString()
        if self._group is not None:
            try:
                self._send(method, payload)
            except RuntimeError as error:
                raise self._break(f"rank 0 could not reach the others: {error}") from error
        return self._run(method, payload)

    def beat(self) -> None:
        """Tells idle followers that rank 0 lives."""
        if self._group is not None and not self.broken:
            try:
                self._send(BEAT, b"")
            except RuntimeError as error:
                self._break(f"a rank is gone: {error}")

    def stop(self) -> None:
        """Ends the followers' loops, if they can still be reached."""
        if self._group is None or self.broken or not self._at.speaks:
            return
        try:
            self._send(STOP, b"")
        except RuntimeError as error:
            log.warning("followers could not be told to stop: %s", error)

    def follow(self) -> None:
        """A follower's life: executes what rank 0 sends until it says stop or the gang breaks."""
        while not self.broken:
            try:
                method, payload = self._receive()
            except RuntimeError as error:
                self._break(f"rank {self._at.rank} lost rank 0: {error}")
                return
            if method == STOP:
                return
            if method == BEAT:
                continue
            try:
                self._run(method, payload)
            except CrescendoError as error:
                log.warning("%s failed on rank %d: %s", method, self._at.rank, error)

    def _run(self, method: str, payload: bytes) -> Message:
        try:
            answer = self._execute(method, payload)
        except CrescendoError as error:
            self._agree(error)
            raise
        except Exception as error:
            # Others may be inside a collective that this rank will never join.
            log.exception("%s failed on rank %d", method, self._at.rank)
            if self._group is None:
                raise
            raise self._break(f"{method} failed on rank {self._at.rank}: {type(error).__name__}: {error}") from error
        self._agree(None)
        return answer

    def agree(self, error: CrescendoError | None) -> None:
        """A point that all ranks reach: raises on each rank if any has an error, before collectives start."""
        outcomes = self._exchange(error)
        failed = [each for each in outcomes if each is not None]
        if failed:
            raise error or failed[0]

    def gather(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, on every rank, in rank order."""
        if self._group is None:
            return [data]
        size = torch.tensor([len(data)], dtype=torch.int64)
        sizes = [torch.empty_like(size) for _ in range(self._at.world_size)]
        dist.all_gather(sizes, size, group=self._group)
        longest = max(1, max(int(each) for each in sizes))
        mine = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
        everyone = [torch.empty_like(mine) for _ in range(self._at.world_size)]
        dist.all_gather(everyone, mine, group=self._group)
        return [each.numpy().tobytes()[: int(n)] for each, n in zip(everyone, sizes, strict=True)]

    def _agree(self, error: CrescendoError | None) -> None:
        if self._group is None:
            return
        outcomes = self._exchange(error)
        kinds = {type(each).__name__ for each in outcomes}
        if len(kinds) > 1:
            text = "; ".join(f"rank {rank}: {each or 'done'}" for rank, each in enumerate(outcomes))
            raise self._break(f"ranks disagree: {text}") from error

    def _exchange(self, error: CrescendoError | None) -> list[CrescendoError | None]:
        """Every rank's error, or None where there is none."""
        if self._group is None:
            return [error]
        detail = b"" if error is None else to_detail(_shortened(error)).SerializeToString()
        mine = torch.zeros(_OUTCOME_BYTES + 8, dtype=torch.uint8)
        mine[:8] = torch.frombuffer(bytearray(len(detail).to_bytes(8, "little")), dtype=torch.uint8)
        if detail:
            mine[8 : 8 + len(detail)] = torch.frombuffer(bytearray(detail), dtype=torch.uint8)
        everyone = [torch.empty_like(mine) for _ in range(self._at.world_size)]
        try:
            dist.all_gather(everyone, mine, group=self._group)
        except RuntimeError as failure:
            raise self._break(f"rank {self._at.rank} lost another rank: {failure}") from failure
        return [_outcome(each.numpy().tobytes()) for each in everyone]

    def _send(self, method: str, payload: bytes) -> None:
        name = method.encode().ljust(_NAME_BYTES)
        header = bytearray(name + len(payload).to_bytes(8, "little"))
        dist.broadcast(torch.frombuffer(header, dtype=torch.uint8), src=0, group=self._group)
        if payload:
            dist.broadcast(torch.frombuffer(bytearray(payload), dtype=torch.uint8), src=0, group=self._group)

    def _receive(self) -> tuple[str, bytes]:
        header = torch.empty(_NAME_BYTES + 8, dtype=torch.uint8)
        dist.broadcast(header, src=0, group=self._group)
        raw = header.numpy().tobytes()
        method, size = raw[:_NAME_BYTES].decode().strip(), int.from_bytes(raw[_NAME_BYTES:], "little")
        if not size:
            return method, b""
        payload = torch.empty(size, dtype=torch.uint8)
        dist.broadcast(payload, src=0, group=self._group)
        return method, payload.numpy().tobytes()

    def _break(self, reason: str) -> WorkerLostError:
        """Marks the gang broken and closes this rank's connections; returns the error to raise."""
        if not self.broken:
            self.broken = reason
            log.error("the gang broke: %s", reason)
            self._group = None
            parallel.stop()
        return WorkerLostError(f"the trainer gang is broken: {reason}", fix="Restart the gang.")


def _shortened(error: CrescendoError) -> CrescendoError:
    """The error with texts that surely fit an outcome's place."""
    return type(error)(error.message[:1000], field=error.field[:100], fix=error.fix[:300], retry_after_s=0.0)


def _outcome(raw: bytes) -> CrescendoError | None:
    size = int.from_bytes(raw[:8], "little")
    return from_detail(common_pb2.ErrorDetail.FromString(raw[8 : 8 + size])) if size else None
