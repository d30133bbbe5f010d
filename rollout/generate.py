"""One Generate call: requests in, one message an engine step out, until both sides are done.

Outside the ledger (validation, canaries, evaluation, benchmarks). What several steps made while the client
was slow goes out in one message. A client that goes away ends its requests.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from crescendo.common.errors import CrescendoError, RequestError
from crescendo.proto.v1 import common_pb2, rollout_pb2
from crescendo.rollout.engine.base import EngineOutput, EngineRequest, FinishReason, Output
from crescendo.rollout.engine.thread import EngineThread
from crescendo.rollout.watch import Decode, ResponseWatch

log = logging.getLogger(__name__)


class GenerateCall:
    """A sink of the engine thread that lives as long as one stream."""

    def __init__(
        self,
        engine: EngineThread,
        call_id: int,
        weight_version: int,
        decode: Decode | None,
        *,
        at_once: bool = False,
    ) -> None:
        """at_once: nothing is admitted before the last request was read, so that all meet the same company."""
        self._engine = engine
        self._at_once = at_once
        self._unsubmitted: list[EngineRequest] = []
        self._prefix = f"generate-{call_id}/"
        self._weight_version = weight_version
        self._decode = decode
        self._watches: dict[str, ResponseWatch] = {}
        self._pending: list[rollout_pb2.GenerateDelta] = []
        self._wake = asyncio.Event()
        self._all_read = False
        self._error: CrescendoError | None = None

    async def run(
        self, requests: AsyncIterator[rollout_pb2.GenerateRequest]
    ) -> AsyncIterator[rollout_pb2.GenerateResponse]:
        """Yields answers until the client sent everything and everything ended."""
        reading = asyncio.create_task(self._read(requests))
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._pending:
                    deltas, self._pending = self._pending, []
                    yield rollout_pb2.GenerateResponse(deltas=deltas, weight_version=self._weight_version)
                if self._error is not None:
                    raise self._error
                if self._all_read and not self._watches and not self._pending:
                    return
        finally:
            reading.cancel()
            self._engine.forget(list(self._watches))

    def end(self) -> None:
        """Ends all requests as ABORTED: the weights are about to change."""
        self._engine.forget(list(self._watches))
        for one in list(self._watches):
            self._finish(one, [], [], common_pb2.FINISH_REASON_ABORTED)
        self._wake.set()

    def on_outputs(self, outputs: Sequence[Output]) -> None:
        """Collects one step."""
        overrun: list[str] = []
        for output in outputs:
            watch = self._watches.get(output.request_id)
            if watch is None or not isinstance(output, EngineOutput):
                continue
            token_ids, log_probs, reason = output.token_ids, output.log_probs, output.finish_reason
            end = watch.end_of(token_ids)
            if end is not None:
                count, reason_here = end
                if reason == common_pb2.FINISH_REASON_UNSPECIFIED:
                    overrun.append(output.request_id)
                token_ids, log_probs, reason = token_ids[:count], log_probs[:count], reason_here
            self._finish(output.request_id, token_ids, log_probs, reason)
        if overrun:
            self._engine.forget(overrun)
        self._wake.set()

    def on_failure(self, error: CrescendoError) -> None:
        """The engine died."""
        self._error = error
        self._watches.clear()
        self._wake.set()

    async def _read(self, requests: AsyncIterator[rollout_pb2.GenerateRequest]) -> None:
        try:
            async for request in requests:
                self._submit(request)
        except CrescendoError as error:
            self._error = error
        if self._unsubmitted:
            self._engine.submit(self._unsubmitted, self)
        self._all_read = True
        self._wake.set()

    def _submit(self, request: rollout_pb2.GenerateRequest) -> None:
        request_id = self._prefix + request.request_id
        if request_id in self._watches:
            raise RequestError(f"request_id {request.request_id!r} is running already.", field="request_id")
        room = self._engine.max_sequence_tokens - len(request.prompt_token_ids)
        if not request.prompt_token_ids or request.max_tokens < 1 or room < 1:
            raise RequestError(
                f"request {request.request_id!r} has {len(request.prompt_token_ids)} prompt tokens and max_tokens "
                f"{request.max_tokens}; both must be positive, and a sequence has at most "
                f"{self._engine.max_sequence_tokens} tokens.",
                field="prompt_token_ids",
                fix="Shorten the prompt or raise max_response_tokens of a stage.",
            )
        self._watches[request_id] = ResponseWatch(request.repetition, request.sampling.stop_strings, self._decode)
        engine_request = EngineRequest(
            request_id=request_id,
            prompt_token_ids=list(request.prompt_token_ids),
            max_tokens=min(request.max_tokens, room),
            sampling=request.sampling,
            ignore_eos=request.ignore_eos,
            seed=request.sampling.seed if request.sampling.HasField("seed") else None,
        )
        if self._at_once:
            self._unsubmitted.append(engine_request)
        else:
            self._engine.submit([engine_request], self)

    def _finish(
        self,
        request_id: str,
        token_ids: Sequence[int],
        log_probs: Sequence[float],
        reason: FinishReason,
    ) -> None:
        if reason != common_pb2.FINISH_REASON_UNSPECIFIED:
            del self._watches[request_id]
        self._pending.append(
            rollout_pb2.GenerateDelta(
                request_id=request_id.removeprefix(self._prefix),
                token_ids=token_ids,
                log_probs=log_probs,
                finish_reason=reason,
            )
        )
