"""Scoring of items whose chains have reward models in them: wraps the Dispatcher, and looks like one.

An item is split: its other links go to the executor as before, each `reward_model` link asks its model, and the
components come together in the chain's order. Both go on at once. A link with weight 0 is not asked: `skipped`.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from crescendo.common.errors import CrescendoError, WorkerLostError
from crescendo.common.rpc import to_detail
from crescendo.proto.v1 import common_pb2, reward_pb2
from crescendo.reward_service.reward_models.models import Judgement, RewardModels, within
from crescendo.reward_service.reward_models.question import Question
from crescendo.reward_service.reward_models.transports import RawAnswer
from crescendo.reward_service.scorers.registry import REMOTE_SCORERS
from crescendo.reward_service.scorers.reward_model import RewardModelOptions
from crescendo.reward_service.scorers.reward_model_answer import SCORER as ANSWER
from crescendo.reward_service.typed_options import parse_options

_READ = frozenset({common_pb2.VERDICT_UNSPECIFIED, common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_WRONG})

READ_MARGIN_S = 30.0

Part = common_pb2.RewardComponent | common_pb2.ErrorDetail


class LocalScoring(Protocol):
    """Scores items whose links all run in the executor: the Dispatcher."""

    async def score(
        self, items: Sequence[reward_pb2.ScoreItem], deadline_s: float, timeout_s: float
    ) -> list[reward_pb2.ScoreResult]:
        """One result an item, in order."""
        ...


class ModelScoring:
    """Scores items of any chain."""

    def __init__(self, local: LocalScoring, models: RewardModels) -> None:
        self._local = local
        self._models = models

    def check(self, chain: Sequence[reward_pb2.ScorerSpec]) -> None:
        """Raises RequestError if a link names a model that the service was not told of."""
        for spec in filter(is_remote, chain):
            self._models.get(_options_of(spec).model)

    async def score(
        self, items: Sequence[reward_pb2.ScoreItem], deadline_s: float, timeout_s: float
    ) -> list[reward_pb2.ScoreResult]:
        """One result an item, in order; raises what the Dispatcher raises when the executor answers for no item."""
        if not any(is_remote(spec) for item in items for spec in item.chain):
            return await self._local.score(items, deadline_s, timeout_s)
        ends_s = asyncio.get_running_loop().time() + timeout_s
        asked = [
            asyncio.create_task(self._link(item, spec, deadline_s, ends_s))
            for item in items
            for spec in item.chain
            if is_remote(spec)
        ]
        try:
            local = await self._score_local(items, deadline_s, timeout_s)
            answers = iter(await asyncio.gather(*asked))
        finally:
            for task in asked:
                task.cancel()
        return [
            joined(item, local.get(index), [next(answers) for spec in item.chain if is_remote(spec)])
            for index, item in enumerate(items)
        ]

    async def _score_local(
        self, items: Sequence[reward_pb2.ScoreItem], deadline_s: float, timeout_s: float
    ) -> dict[int, reward_pb2.ScoreResult]:
        parts = {index: local for index, item in enumerate(items) if (local := local_part(item)) is not None}
        if not parts:
            return {}
        results = await self._local.score(list(parts.values()), deadline_s, timeout_s)
        return dict(zip(parts, results, strict=True))

    async def _link(
        self, item: reward_pb2.ScoreItem, spec: reward_pb2.ScorerSpec, deadline_s: float, ends_s: float
    ) -> Part:
        options = _options_of(spec)
        name = f"{spec.name}:{options.model}"
        if spec.weight == 0.0:
            return common_pb2.RewardComponent(
                name=name, weight=0.0, verdict=common_pb2.VERDICT_SKIPPED, detail="its weight is 0"
            )

        async def read(answer: RawAnswer, nonce: str) -> Judgement:
            return await self._read(item.item_id, answer, nonce, deadline_s)

        try:
            model = self._models.get(options.model)
            remaining_s = ends_s - asyncio.get_running_loop().time()
            judgement = await within(remaining_s, model.judge(Question.of(item, options), read))
        except CrescendoError as error:
            return to_detail(error)
        return common_pb2.RewardComponent(
            name=name,
            raw=judgement.raw,
            weight=spec.weight,
            verdict=judgement.verdict,
            detail=f"span {options.span}",
        )

    async def _read(self, item_id: str, answer: RawAnswer, nonce: str, deadline_s: float) -> Judgement:
        """Has a confined worker read the body; raises WorkerLostError, to ask again, if there is no verdict in it."""
        item = reward_pb2.ScoreItem(
            item_id=item_id,
            response=answer.body,
            metadata={"nonce": nonce},
            chain=[reward_pb2.ScorerSpec(name=ANSWER.name, weight=1.0, options={"body": answer.body_kind})],
        )
        (result,) = await self._local.score([item], deadline_s, 2 * deadline_s + READ_MARGIN_S)
        if result.HasField("fault"):
            raise WorkerLostError(f"the reward model's answer was not read: {result.fault.message}")
        component = result.components[0]
        if component.verdict not in _READ:
            raise WorkerLostError(f"the reward model's answer cannot be read: {component.detail}.")
        return Judgement(component.raw, component.verdict)


def _options_of(spec: reward_pb2.ScorerSpec) -> RewardModelOptions:
    return parse_options(RewardModelOptions, spec.options, spec.name)


def is_remote(spec: reward_pb2.ScorerSpec) -> bool:
    """Whether a link asks a reward model."""
    return spec.name in REMOTE_SCORERS


def local_part(item: reward_pb2.ScoreItem) -> reward_pb2.ScoreItem | None:
    """The item with the executor's links only; None if there are none."""
    chain = [spec for spec in item.chain if not is_remote(spec)]
    if not chain:
        return None
    if len(chain) == len(item.chain):
        return item
    part = reward_pb2.ScoreItem()
    part.CopyFrom(item)
    del part.chain[:]
    part.chain.extend(chain)
    return part


def joined(
    item: reward_pb2.ScoreItem, local: reward_pb2.ScoreResult | None, remote: Sequence[Part]
) -> reward_pb2.ScoreResult:
    """The item's result in the chain's order; a fault of any part is the item's."""
    if local is not None and local.HasField("fault"):
        return local
    faults = [part for part in remote if isinstance(part, common_pb2.ErrorDetail)]
    if faults:
        return reward_pb2.ScoreResult(item_id=item.item_id, fault=faults[0])
    result = reward_pb2.ScoreResult(item_id=item.item_id)
    if local is not None:
        result.CopyFrom(local)
    ours, theirs = iter(remote), iter(list(local.components) if local is not None else [])
    del result.components[:]
    for spec in item.chain:
        part = next(ours) if is_remote(spec) else next(theirs)
        if isinstance(part, common_pb2.RewardComponent):
            result.components.append(part)
    return result
