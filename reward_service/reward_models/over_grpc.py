"""Reward models behind gRPC: RewardModelService of proto/crescendo/v1/reward_model.proto."""

from crescendo.common.config.reward_models import RewardModelConfig
from crescendo.common.rpc import Client, Endpoint
from crescendo.proto.v1 import reward_model_pb2, reward_model_pb2_grpc
from crescendo.reward_service.reward_models.question import Question, instructions
from crescendo.reward_service.reward_models.transports import RawAnswer


class GrpcTransport:
    """One model's channel. Lives on the event loop that made it."""

    def __init__(self, model: RewardModelConfig, key: str) -> None:
        self._model = model
        self._client = Client(Endpoint(model.url, key), reward_model_pb2_grpc.RewardModelServiceStub)

    async def ask(self, question: Question, nonce: str) -> RawAnswer:
        """The score, or the text unread; raises what common.rpc.Client.call raises."""
        request = reward_model_pb2.EvaluateRequest(
            model=self._model.model,
            request_id=nonce,
            question=question.prompt,
            reference_answers=question.reference_answers,
            response=question.response,
            instructions=instructions(self._model, nonce) if self._model.answers == "verdict" else "",
        )
        answer: reward_model_pb2.EvaluateResponse = await self._client.call(
            self._client.stub.Evaluate, request, timeout_s=self._model.timeout_s
        )
        if answer.WhichOneof("answer") == "score":
            return RawAnswer(score=answer.score)
        return RawAnswer(body=answer.text)

    async def close(self) -> None:
        """Ends the channel."""
        await self._client.close()
