"""Held-out accuracy: fixed prompts, generated outside the ledger by the engines, scored like any response."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from crescendo.common.config.rl import RlStepConfig, StageConfig
from crescendo.common.config.schema import Config
from crescendo.common.errors import DeadlineError
from crescendo.common.tokenizer import Tokenizer
from crescendo.controller.launch import Fleet, Worker
from crescendo.controller.loop.scoring import chain_of, score_item
from crescendo.proto.v1 import common_pb2, reward_pb2, rollout_pb2

Response = tuple[list[int], "common_pb2.FinishReason.ValueType"]


@dataclass(frozen=True)
class ValidationFacts:
    """accuracy: mean over prompts and samples; length in tokens; clip_ratio: share cut by the limit."""

    accuracy: float
    length: float
    clip_ratio: float


@dataclass
class Validation:
    """Generates and scores the held-out prompts with the weights that the engines serve."""

    config: Config
    step: RlStepConfig
    fleet: Fleet
    tokenizer: Tokenizer
    prompts: Sequence[common_pb2.Prompt]

    async def run(self, stage: StageConfig) -> ValidationFacts:
        """Measures at a stage's context length; raises WorkerLostError or DeadlineError."""
        settings = self.step.validation
        prompts = [prompt for prompt in self.prompts for _ in range(settings.samples_per_prompt)]
        shares = [
            list(range(number, len(prompts), len(self.fleet.engines))) for number in range(len(self.fleet.engines))
        ]
        responses: dict[int, Response] = {}
        for part in await asyncio.gather(
            *(
                self._generate(engine, prompts, share, stage)
                for engine, share in zip(self.fleet.engines, shares, strict=True)
            )
        ):
            responses |= part
        correct = await self._judge(prompts, responses, stage)
        count = max(1, len(prompts))
        reasons = [reason for _, reason in responses.values()]
        return ValidationFacts(
            accuracy=correct / count,
            length=sum(len(tokens) for tokens, _ in responses.values()) / count,
            clip_ratio=reasons.count(common_pb2.FINISH_REASON_LENGTH) / count,
        )

    async def _generate(
        self, engine: Worker, prompts: Sequence[common_pb2.Prompt], share: list[int], stage: StageConfig
    ) -> dict[int, Response]:
        sampling = common_pb2.Sampling(
            temperature=self.step.validation.temperature, top_p=1.0, stop_token_ids=self.tokenizer.eos_token_ids
        )
        run = self.config.run

        async def requests() -> AsyncIterator[rollout_pb2.GenerateRequest]:
            for index in share:
                if run.deterministic:
                    sampling.seed = (run.seed * len(prompts) + index) % 2**62
                yield rollout_pb2.GenerateRequest(
                    request_id=str(index),
                    prompt_token_ids=prompts[index].token_ids,
                    sampling=sampling,
                    max_tokens=stage.max_response_tokens,
                )

        tokens: dict[int, list[int]] = {index: [] for index in share}
        reasons: dict[int, common_pb2.FinishReason.ValueType] = {}
        async for answer in engine.stream("Generate", requests(), timeout_s=self.config.deadlines.rollout_s):
            for delta in answer.deltas:
                index = int(delta.request_id)
                tokens[index].extend(delta.token_ids)
                if delta.finish_reason:
                    reasons[index] = delta.finish_reason
        if len(reasons) != len(share):
            raise DeadlineError(f"{engine.worker_id} left {len(share) - len(reasons)} validation prompts unanswered.")
        return {index: (tokens[index], reasons[index]) for index in share}

    async def _judge(
        self, prompts: Sequence[common_pb2.Prompt], responses: dict[int, Response], stage: StageConfig
    ) -> int:
        items = [
            score_item(
                str(index),
                self.tokenizer.decode(tokens),
                prompts[index],
                chain_of(self.config, prompts[index].domain, stage)[:1],
                reason,
                len(tokens),
            )
            for index, (tokens, reason) in sorted(responses.items())
        ]
        request = reward_pb2.ScoreRequest(items=items, deadline_seconds=self.config.reward_service.item_deadline_s)
        timeout_s = self.config.deadlines.scoring_s
        answer = await self.fleet.reward.call("Score", request, timeout_s=timeout_s, attempts=3)
        return sum(
            result.components[0].verdict == common_pb2.VERDICT_CORRECT
            and responses[int(result.item_id)][1] == common_pb2.FINISH_REASON_STOP
            for result in answer.results
            if result.components
        )
