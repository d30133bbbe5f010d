"""Requests that are no message of their method: refused with a typed error, like any other wrong request.

Left alone, grpc answers INTERNAL with text of its own, which a caller cannot tell from a fault of the service.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from crescendo.common.errors import RequestError
from crescendo.common.rpc.guards import OPEN_METHODS, Continuation, Handler
from crescendo.common.rpc.status import Context, guarded, guarded_stream


@dataclass(frozen=True)
class _Undecodable:
    """Stands for a request that could not be read. reason: what the decoder said."""

    reason: str

    def error(self) -> RequestError:
        return RequestError(f"the request is no message of this method: {self.reason}.", field="request")


class DecodingGuard(grpc.aio.ServerInterceptor):
    """Puts a reader of its own before handlers that take one request; health and reflection keep theirs."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        is_foreign = handler_call_details.method.startswith(OPEN_METHODS)  # grpc's own, written in other ways
        if handler is None or is_foreign or handler.request_streaming or handler.request_deserializer is None:
            return handler
        inner: Any = handler
        decode = _decoding(handler.request_deserializer)
        if handler.response_streaming:
            streaming = _Streaming(inner.unary_stream)
            return grpc.unary_stream_rpc_method_handler(streaming.answer, decode, handler.response_serializer)
        unary = _Unary(inner.unary_unary)
        return grpc.unary_unary_rpc_method_handler(unary.answer, decode, handler.response_serializer)


def _decoding(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, ValueError, RecursionError) as error:
            return _Undecodable(str(error))

    return decode


@dataclass(frozen=True)
class _Unary:
    behaviour: Callable[[Any, Context], Any]

    @guarded
    async def answer(self, request: Any, context: Context) -> Any:
        if isinstance(request, _Undecodable):
            raise request.error()
        return await self.behaviour(request, context)


@dataclass(frozen=True)
class _Streaming:
    behaviour: Callable[[Any, Context], AsyncIterator[Any]]

    @guarded_stream
    async def answer(self, request: Any, context: Context) -> AsyncIterator[Any]:
        if isinstance(request, _Undecodable):
            raise request.error()
        async for response in self.behaviour(request, context):
            yield response
