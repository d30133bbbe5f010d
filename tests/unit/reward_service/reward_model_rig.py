"""A reward process in miniature for tests of remote reward models: links, items, a local scorer, a judge."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from crescendo.common.config.reward_models import RewardModelConfig
from crescendo.common.errors import WorkerLostError
from crescendo.proto.v1 import common_pb2, reward_pb2
from crescendo.reward_service.reward_models import ModelScoring, RewardModels
from crescendo.reward_service.scorers import Sample, resolve_chain
from tests.fakes.reward_model_server import RewardModelServer, Script


class Local:
    """Scores in this process what the executor would score."""

    def __init__(self, fault: bool = False) -> None:
        self.fault = fault

    async def score(
        self, items: Sequence[reward_pb2.ScoreItem], deadline_s: float, timeout_s: float
    ) -> list[reward_pb2.ScoreResult]:
        if self.fault:
            raise WorkerLostError("the executor is gone.")
        return [self._one(item) for item in items]

    def _one(self, item: reward_pb2.ScoreItem) -> reward_pb2.ScoreResult:
        sample = Sample(item.response.decode("utf-8", "replace"), tuple(item.gold_answers), dict(item.metadata))
        result = reward_pb2.ScoreResult(item_id=item.item_id, jail="process")
        for (scorer, options), spec in zip(resolve_chain(item.chain), item.chain, strict=True):
            found = scorer.score(sample, options)
            result.components.append(
                common_pb2.RewardComponent(
                    name=spec.name, raw=found.raw, weight=spec.weight, verdict=found.verdict, detail=found.detail
                )
            )
        return result


def link(model: str = "judge", weight: float = 1.0, span: str = "all") -> reward_pb2.ScorerSpec:
    return reward_pb2.ScorerSpec(name="reward_model", weight=weight, options={"model": model, "span": span})


def item(name: str = "t1", response: str | bytes = "so #7", *chain: reward_pb2.ScorerSpec) -> reward_pb2.ScoreItem:
    data = response if isinstance(response, bytes) else response.encode()
    return reward_pb2.ScoreItem(
        item_id=name, response=data, prompt=b"3 + 4?", gold_answers=["7"], chain=chain or [link()]
    )


def config(url: str, **fields: object) -> RewardModelConfig:
    return RewardModelConfig(**{"url": url, "model": "judge-7b", "timeout_s": 5.0, **fields})  # type: ignore[arg-type]


@asynccontextmanager
async def judged_by(script: Script, **fields: object) -> AsyncIterator[tuple[ModelScoring, RewardModelServer]]:
    async with RewardModelServer(script) as server:
        remote = RewardModels.open({"judge": config(server.url, **fields)})
        try:
            yield ModelScoring(Local(), remote), server
        finally:
            await remote.close()


async def score_one(
    scoring: ModelScoring, asked: reward_pb2.ScoreItem, timeout_s: float = 30.0
) -> reward_pb2.ScoreResult:
    (result,) = await scoring.score([asked], 5.0, timeout_s)
    return result
