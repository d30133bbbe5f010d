"""Typed errors over gRPC.

A handler wrapped in `guarded` turns an error of common/errors.py into a status with an ErrorDetail in the
details; `to_error` on the caller's side turns it back. What a handler raises beyond that tree becomes an
InternalError with the original's name, and its traceback goes to the log only.
"""

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from crescendo.common import errors
from crescendo.proto.v1 import common_pb2

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

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
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.WorkerLostError: grpc.StatusCode.UNAVAILABLE,
    errors.CheckpointError: grpc.StatusCode.DATA_LOSS,
    errors.WeightMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
}


def to_detail(error: errors.CrescendoError) -> common_pb2.ErrorDetail:
    """The wire form of an error."""
    return common_pb2.ErrorDetail(
        code=type(error).__name__,
        message=error.message,
        retryable=error.retryable,
        retry_after_seconds=error.retry_after_s,
        field=error.field,
        fix=error.fix,
    )


def from_detail(detail: common_pb2.ErrorDetail) -> errors.CrescendoError:
    """The error that a wire form names; unknown names become InternalError."""
    kind = errors.error_types().get(detail.code, errors.InternalError)
    return kind(detail.message, field=detail.field, fix=detail.fix, retry_after_s=detail.retry_after_seconds)


def to_error(failure: grpc.RpcError) -> errors.CrescendoError:
    """What a failed call means, as a typed error."""
    code = failure.code() if isinstance(failure, grpc.Call | grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    text = (failure.details() or "") if isinstance(failure, grpc.Call | grpc.aio.AioRpcError) else str(failure)
    trailing = failure.trailing_metadata() if isinstance(failure, grpc.Call | grpc.aio.AioRpcError) else None
    for key, value in trailing or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
            for packed in status.details:
                detail = common_pb2.ErrorDetail()
                if packed.Unpack(detail):
                    return from_detail(detail)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineError(text or "the call passed its deadline.")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return errors.WorkerLostError(text or "the service is unreachable.")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.OverloadError(text)
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return errors.RequestError(f"the service refused the token: {text}", fix="Read the token from the run folder.")
    return errors.InternalError(f"{code.name}: {text}")


async def _abort(context: Context, error: BaseException, method: str) -> None:
    if not isinstance(error, errors.CrescendoError):
        log.exception("unexpected error in %s", method)
        error = errors.InternalError(f"{type(error).__name__} in {method}: {error}")
    code = next((c for kind, c in _CODES.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    status = status_pb2.Status(code=code.value[0], message=error.message)
    status.details.add().Pack(to_detail(error))
    await context.abort_with_status(rpc_status.to_status(status))


def guarded(
    handler: Callable[[S, Q, Context], Awaitable[A]],
) -> Callable[[S, Q, Context], Awaitable[A]]:
    """Wraps a unary handler method so that its errors travel typed."""

    @functools.wraps(handler)
    async def wrapped(self: S, request: Q, context: Context) -> A:
        try:
            return await handler(self, request, context)
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
        except Exception as error:
            await _abort(context, error, handler.__qualname__)

    return wrapped
