"""Typed errors over gRPC.

A handler wrapped in `guarded` turns an error of common/errors.py into a status with an ErrorDetail in the
details, and a google.rpc.RetryInfo where it names a delay; `to_error` on the caller's side turns it back. What
a handler raises beyond that tree becomes an InternalError with the original's name, and its traceback goes to
the log only.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from crescendo.common import errors
from crescendo.proto.v1 import common_pb2

log = logging.getLogger(__name__)

# What grpc.aio makes of a message that found its stream broken or ended; the peer's own status is lost then.
_WRITE_TO_ENDED_CALL = "Internal error from Core"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Errors travel as HTTP/2 trailers, of which gRPC takes 8 KiB by default; a message may quote what was wrong.
MAX_TEXT_BYTES = 1_500
MAX_STATUS_BYTES = 300  # percent-encoded on the wire, so that it may become three times as long
FINISH_WRITING_S = 1.0  # how long a refused client may go on with its requests before it is told

S = TypeVar("S")
Q = TypeVar("Q")
A = TypeVar("A")

_CODES: dict[type[errors.CrescendoError], grpc.StatusCode] = {
    errors.StaleFenceError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DataError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OverloadError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.BufferRefusedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DiskFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.WorkerLostError: grpc.StatusCode.UNAVAILABLE,
    errors.CheckpointError: grpc.StatusCode.DATA_LOSS,
    errors.WeightMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
}


def to_detail(error: errors.CrescendoError) -> common_pb2.ErrorDetail:
    """The wire form of an error; long texts are cut."""
    return common_pb2.ErrorDetail(
        code=type(error).__name__,
        message=_cut(error.message, MAX_TEXT_BYTES),
        retryable=error.retryable,
        retry_after_seconds=error.retry_after_s,
        field=_cut(error.field, MAX_TEXT_BYTES),
        fix=_cut(error.fix, MAX_TEXT_BYTES),
    )


def _cut(text: str, num_bytes: int) -> str:
    """Valid Unicode of at most so many bytes, and dots where something is missing."""
    data = text.encode("utf-8", "replace")
    cut = data[:num_bytes].decode("utf-8", "ignore")
    return cut if len(data) <= num_bytes else cut + "..."


def from_detail(detail: common_pb2.ErrorDetail) -> errors.CrescendoError:
    """The error that a wire form names; unknown names become InternalError."""
    kind = errors.error_types().get(detail.code, errors.InternalError)
    return kind(detail.message, field=detail.field, fix=detail.fix, retry_after_s=detail.retry_after_seconds)


def to_error(failure: grpc.RpcError) -> errors.CrescendoError:
    """What a failed call means, as a typed error."""
    code = failure.code() if isinstance(failure, grpc.Call | grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    text = (failure.details() or "") if isinstance(failure, grpc.Call | grpc.aio.AioRpcError) else str(failure)
    trailing = failure.trailing_metadata() if isinstance(failure, grpc.Call | grpc.aio.AioRpcError) else None
    detail, delay_s = _details(trailing)
    if detail is not None:
        return from_detail(detail)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineError(text or "the call passed its deadline.")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) or text == _WRITE_TO_ENDED_CALL:
        return errors.WorkerLostError(text or "the service is unreachable.")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.OverloadError(text, retry_after_s=delay_s)
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return errors.RequestError(f"the service refused the token: {text}", fix="Read the token from the run folder.")
    return errors.InternalError(f"{code.name}: {text}")


def _details(trailing: Any) -> tuple[common_pb2.ErrorDetail | None, float]:
    """The ErrorDetail in a call's trailing metadata, if there is one, and RetryInfo's delay in seconds."""
    delay_s = 0.0
    for key, value in trailing or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        for packed in status_pb2.Status.FromString(value).details:
            detail, retry = common_pb2.ErrorDetail(), error_details_pb2.RetryInfo()
            if packed.Unpack(detail):
                return detail, detail.retry_after_seconds
            if packed.Unpack(retry):
                delay_s = retry.retry_delay.ToTimedelta().total_seconds()
    return None, delay_s


async def _abort(context: Context, error: BaseException, method: str) -> None:
    if not isinstance(error, errors.CrescendoError):
        log.exception("unexpected error in %s", method)
        error = errors.InternalError(f"{type(error).__name__} in {method}: {error}")
    code = next((c for kind, c in _CODES.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    status = status_pb2.Status(code=code.value[0], message=_cut(error.message, MAX_STATUS_BYTES))
    status.details.add().Pack(to_detail(error))
    if error.retry_after_s > 0:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after_s))
        status.details.add().Pack(retry)
    await context.abort_with_status(rpc_status.to_status(status))


async def let_finish_writing(request: Any) -> None:
    """Before a refusal: reads what a streaming client still sends, for FINISH_WRITING_S at most.

    In grpc.aio a write that comes after the call's status replaces it with "Internal error from Core" (grpc/grpc
    issue 36066). request: whatever the handler was called with.
    """
    if not isinstance(request, AsyncIterator):
        return
    with contextlib.suppress(Exception):  # a reader of the handler's own is at it, or the client has gone
        async with asyncio.timeout(FINISH_WRITING_S):
            async for _ in request:
                pass


def guarded(
    handler: Callable[[S, Q, Context], Awaitable[A]],
) -> Callable[[S, Q, Context], Awaitable[A]]:
    """Wraps a unary handler method so that its errors travel typed."""

    @functools.wraps(handler)
    async def wrapped(self: S, request: Q, context: Context) -> A:
        try:
            return await handler(self, request, context)
        except grpc.aio.AbortError:
            raise  # the status is set already, by a guard further in
        except Exception as error:
            await _abort(context, error, handler.__qualname__)
            raise AssertionError("unreachable: abort raises") from error

    return wrapped


def guarded_stream(
    handler: Callable[[S, Q, Context], AsyncIterator[A]],
) -> Callable[[S, Q, Context], AsyncIterator[A]]:
    """Wraps a server-streaming (or bidirectional) handler method likewise."""

    @functools.wraps(handler)
    async def wrapped(self: S, request: Q, context: Context) -> AsyncIterator[A]:
        try:
            async for answer in handler(self, request, context):
                yield answer
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await let_finish_writing(request)
            await _abort(context, error, handler.__qualname__)

    return wrapped
