"""A reward model as the service uses it: cached, retried, limited.

    question --> cache, or a call under way for the same question --> limit on calls at once --> attempts:
                     transport.ask --> the executor reads the body --> Judgement, kept in the cache

A call that cannot be reached, is refused for now, or gives an answer that cannot be read, is tried again with growing
waits; then it is an error. Only judgements are kept, never errors.
"""

import asyncio
import json
import math
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields

from crescendo.common.config.reward_models import RewardModelConfig
from crescendo.common.errors import ConfigError, CrescendoError, DeadlineError, RequestError, WorkerLostError
from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.reward_models.question import Question, new_nonce
from crescendo.reward_service.reward_models.transports import RawAnswer, Transport, open_transport

FIRST_WAIT_S = 0.25
MAX_WAIT_S = 30.0


@dataclass(frozen=True)
class Judgement:
    """What a model said. raw: within the model's low and high."""

    raw: float
    verdict: common_pb2.Verdict.ValueType


Reader = Callable[[RawAnswer, str], Awaitable[Judgement]]
"""Reads a body in a confined worker, given the nonce; raises a CrescendoError if there is no verdict in it."""


@dataclass
class ModelCounters:
    """What happened since the start."""

    num_calls: int = 0
    num_retries: int = 0
    num_faults: int = 0
    num_from_cache: int = 0


class _Call:
    """A question under way. has_place: the model is being asked; until then it can be dropped."""

    task: asyncio.Task[Judgement]

    def __init__(self) -> None:
        self.num_waiting = 0
        self.has_place = False


class RewardModel:
    """One model. `judge` as often as needed; `await close()` at the end."""

    def __init__(self, config: RewardModelConfig, transport: Transport) -> None:
        self.config = config
        self.counters = ModelCounters()
        self._transport = transport
        self._places = asyncio.Semaphore(config.max_concurrency)
        self._kept: OrderedDict[bytes, Judgement] = OrderedDict()
        self._under_way: dict[bytes, _Call] = {}

    @property
    def worst_case_s(self) -> float:
        """Longest that one question can take, once it has a place."""
        return self.config.attempts * (self.config.timeout_s + MAX_WAIT_S)

    async def judge(self, question: Question, read: Reader) -> Judgement:
        """The model's judgement; raises a CrescendoError after the last attempt."""
        key = question.digest()
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            self.counters.num_from_cache += 1
            return kept
        call = self._under_way.get(key)
        if call is None:
            call = self._under_way[key] = _Call()
            call.task = asyncio.get_running_loop().create_task(self._ask(key, call, question, read))
            call.task.add_done_callback(lambda _: self._ended(key, call))
        else:
            self.counters.num_from_cache += 1
        call.num_waiting += 1
        try:
            # Shielded: others may wait for the same question, and a judgement that is being paid for is kept.
            return await asyncio.shield(call.task)
        finally:
            call.num_waiting -= 1
            if not call.num_waiting and not call.has_place:
                # Everyone has gone away before the model was asked: callers that are killed leave no queue behind.
                self._ended(key, call)
                call.task.cancel()

    def _ended(self, key: bytes, call: "_Call") -> None:
        if self._under_way.get(key) is call:
            del self._under_way[key]
        if call.task.done() and not call.task.cancelled():
            call.task.exception()  # whoever asked may have gone away; the counters have it

    async def close(self) -> None:
        """Gives up what is under way and ends the connections."""
        tasks = [call.task for call in self._under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._transport.close()

    async def _ask(self, key: bytes, call: "_Call", question: Question, read: Reader) -> Judgement:
        async with self._places:
            call.has_place = True
            judgement = await self._attempts(question, read)
        if self.config.cache_entries:
            self._kept[key] = judgement
            while len(self._kept) > self.config.cache_entries:
                self._kept.popitem(last=False)
        return judgement

    async def _attempts(self, question: Question, read: Reader) -> Judgement:
        wait_s = FIRST_WAIT_S
        for attempt in range(1, self.config.attempts + 1):
            try:
                return await self._once(question, read)
            except CrescendoError as error:
                if not error.retryable or attempt == self.config.attempts:
                    self.counters.num_faults += 1
                    raise
                self.counters.num_retries += 1
                await asyncio.sleep(min(MAX_WAIT_S, max(error.retry_after_s, wait_s * random.uniform(0.5, 1.5))))
                wait_s *= 2
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _once(self, question: Question, read: Reader) -> Judgement:
        self.counters.num_calls += 1
        nonce = new_nonce()
        answer = await self._transport.ask(question, nonce)
        if answer.score is None:
            found = await read(answer, nonce)
        elif self.config.answers == "verdict":
            raise WorkerLostError("the reward model gave a score; a verdict was asked for.")
        else:
            found = Judgement(answer.score, common_pb2.VERDICT_UNSPECIFIED)
        if not math.isfinite(found.raw):
            raise WorkerLostError(f"the reward model's score is {found.raw}; it must be a finite number.")
        return Judgement(min(self.config.high, max(self.config.low, found.raw)), found.verdict)


class RewardModels:
    """The models of a run by name."""

    def __init__(self, models: Mapping[str, RewardModel]) -> None:
        self._models = models

    @classmethod
    def open(cls, configs: Mapping[str, RewardModelConfig]) -> "RewardModels":
        """Opens what the run file describes; raises ConfigError on a key or certificate that cannot be read."""
        return cls({name: RewardModel(config, open_transport(name, config)) for name, config in configs.items()})

    def get(self, name: str) -> RewardModel:
        """The model; raises RequestError where the service was not told of it."""
        model = self._models.get(name)
        if model is None:
            raise RequestError(
                f"there is no reward model {name!r}; there are: {', '.join(self._models) or 'none'}.",
                field="model",
                fix=f"Describe it under rewards.models.{name}.",
            )
        return model

    @property
    def worst_case_s(self) -> float:
        """Longest that a call may take besides the executor's part; 0 without models."""
        return max((model.worst_case_s for model in self._models.values()), default=0.0)

    @property
    def counters(self) -> dict[str, ModelCounters]:
        """Counts by model."""
        return {name: model.counters for name, model in self._models.items()}

    async def close(self) -> None:
        """Ends all connections."""
        await asyncio.gather(*(model.close() for model in self._models.values()))


async def within(limit_s: float, work: Awaitable[Judgement]) -> Judgement:
    """The work's result, at most limit_s from now; raises DeadlineError."""
    try:
        async with asyncio.timeout(max(0.001, limit_s)):
            return await work
    except TimeoutError:
        raise DeadlineError(f"the reward model was not through within {limit_s:.0f} s.") from None


def parse_models(text: str) -> dict[str, RewardModelConfig]:
    """Reads rewards.models as the controller passes it, a JSON object; raises ConfigError. Empty text: no models."""
    try:
        entries = json.loads(text or "{}")
        known = {field.name for field in fields(RewardModelConfig)}
        unknown = {key for entry in entries.values() for key in entry if key not in known}
        if unknown:
            raise ConfigError(f"rewards.models has no field {sorted(unknown)[0]!r}.", field="rewards.models")
        return {name: RewardModelConfig(**entry) for name, entry in entries.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"rewards.models cannot be read: {error}", field="rewards.models") from None
