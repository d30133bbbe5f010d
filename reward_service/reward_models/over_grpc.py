"""Reward models behind gRPC: RewardModelService of proto/crescendo/v1/reward_model.proto.

Not common.rpc.Client: that speaks with the run's own identity to the run's own services, and a reward model is neither.
With `ca_file` the channel is TLS, without it in the clear.
"""

import grpc

from crescendo.common.config.reward_models import RewardModelConfig
from crescendo.common.rpc import Endpoint, to_error
from crescendo.proto.v1 import reward_model_pb2, reward_model_pb2_grpc
from crescendo.reward_service.reward_models.question import Question, instructions
from crescendo.reward_service.reward_models.transports import MAX_BODY_BYTES, RawAnswer, read_certificates

OPTIONS = (("grpc.max_receive_message_length", MAX_BODY_BYTES), ("grpc.enable_http_proxy", 0))


class GrpcTransport:
    """One model's channel. Lives on the event loop that made it."""

    def __init__(self, name: str, model: RewardModelConfig, key: str) -> None:
        self._model = model
        self._metadata = Endpoint(model.url, key).metadata
        if model.ca_file:
            credentials = grpc.ssl_channel_credentials(read_certificates(name, model.ca_file))
            self._channel = grpc.aio.secure_channel(model.url, credentials, options=OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(model.url, options=OPTIONS)
        self._stub = reward_model_pb2_grpc.RewardModelServiceStub(self._channel)

    async def ask(self, question: Question, nonce: str) -> RawAnswer:
        """The score, or the text unread; raises a CrescendoError, as every client of a service here does."""
        request = reward_model_pb2.EvaluateRequest(
            model=self._model.model,
            request_id=nonce,
            question=question.prompt,
            reference_answers=question.reference_answers,
            response=question.response,
            instructions=instructions(self._model, nonce) if self._model.answers == "verdict" else "",
        )
        try:
            answer: reward_model_pb2.EvaluateResponse = await self._stub.Evaluate(
                request, timeout=self._model.timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as failure:
            raise to_error(failure) from None
        if answer.WhichOneof("answer") == "score":
            return RawAnswer(score=answer.score)
        return RawAnswer(body=answer.text)

    async def close(self) -> None:
        """Ends the channel."""
        await self._channel.close()
