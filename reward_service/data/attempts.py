"""How often a model gets a question right, and how often it guesses the answer without any reasoning.

The pass rate over N samples is k1.5's measure of difficulty, and a question that is guessed right within N = 8
attempts is left out (section 2.1; 10 samples there, temperature and cut-offs are not given). Samples come from a
RolloutService, verdicts from an executor.

    questions -> prompts -> Generate (one stream for a batch) -> texts -> executor -> tallies
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from crescendo.common.errors import CrescendoError, DataError, DeadlineError, InternalError, RequestError
from crescendo.common.rpc import Client
from crescendo.proto.v1 import common_pb2, rollout_pb2, rollout_pb2_grpc
from crescendo.reward_service.data.grader import Grader
from crescendo.reward_service.data.questions import Question

log = logging.getLogger(__name__)

ENGINE_ATTEMPTS = 3


@dataclass(frozen=True)
class AttemptOptions:
    """num_samples, num_guesses: a question, 0 skips them; max_tokens, guess_tokens: longest responses.

    guess_prefix: what the model's guess continues, so that it cannot reason first.
    """

    num_samples: int = 10
    num_guesses: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 2048
    guess_tokens: int = 32
    guess_prefix: str = "\\boxed{"
    timeout_s: float = 3600.0


@dataclass
class Tally:
    """What became of one question's attempts. problem: why it could not be tried; num_faults: not graded."""

    num_samples: int = 0
    num_correct: int = 0
    num_guesses: int = 0
    num_guessed: int = 0
    num_faults: int = 0
    problem: str = ""

    @property
    def pass_rate(self) -> float | None:
        """Share of graded samples that were right; None when there was none."""
        return self.num_correct / self.num_samples if self.num_samples else None


@dataclass(frozen=True)
class Prompts:
    """How questions become token ids. sample: to be answered; guess: to be answered at once, prefix included."""

    sample: Callable[[str], Sequence[int]]
    guess: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    stop_token_ids: Sequence[int] = ()


@dataclass
class _Try:
    """One response on its way."""

    place: int
    is_guess: bool
    prompt: Sequence[int]
    tokens: list[int] = field(default_factory=list)
    is_done: bool = False


class Attempts:
    """`await tallies(questions)` for one batch after the other."""

    def __init__(
        self,
        client: Client[rollout_pb2_grpc.RolloutServiceStub],
        grader: Grader,
        prompts: Prompts,
        options: AttemptOptions,
    ) -> None:
        self._client = client
        self._grader = grader
        self._prompts = prompts
        self._options = options

    async def tallies(self, questions: Sequence[Question]) -> list[Tally]:
        """One a question, in order. Raises a CrescendoError when engine or executor stay away."""
        found = [Tally() for _ in questions]
        tries: list[_Try] = []
        for place, question in enumerate(questions):
            try:
                tries += self._tries(place, question)
            except DataError as error:
                found[place].problem = error.message
        try:
            await self._generate(tries, is_alone=len(questions) == 1)
        except (RequestError, InternalError) as error:
            # The engine refuses a prompt and with it the whole stream: alone, only that question is to blame.
            if len(questions) > 1:
                return [(await self.tallies([question]))[0] for question in questions]
            if not isinstance(error, RequestError):
                raise
            return [Tally(problem=error.message)]
        verdicts = await self._grader.correct([(questions[one.place], self._text(one)) for one in tries])
        for one, is_correct in zip(tries, verdicts, strict=True):
            _count(found[one.place], one, is_correct)
        return found

    def _tries(self, place: int, question: Question) -> list[_Try]:
        options, prompts = self._options, self._prompts
        sample = prompts.sample(question.text) if options.num_samples else ()
        guess = prompts.guess(question.text) if options.num_guesses else ()
        return [
            _Try(place, is_guess, guess if is_guess else sample)
            for is_guess, count in ((False, options.num_samples), (True, options.num_guesses))
            for _ in range(count)
        ]

    def _text(self, one: _Try) -> str:
        text = self._prompts.decode(one.tokens)
        if not one.is_guess:
            return text
        guess = self._options.guess_prefix + text
        return guess if guess.count("{") <= guess.count("}") else guess + "}"

    async def _probe(self, tries: Sequence[_Try]) -> None:
        """One sample and one guess ahead of the others, so that a refusal is heard: see `is_held` below."""
        for is_guess in (False, True):
            first = [one for one in tries if one.is_guess is is_guess][:1]
            if first:
                await self._stream(first, is_held=True)

    async def _generate(self, tries: Sequence[_Try], *, is_alone: bool) -> None:
        for attempt in range(1, ENGINE_ATTEMPTS + 1):
            for one in tries:
                if not one.is_done:
                    one.tokens.clear()
            try:
                if is_alone:
                    await self._probe([one for one in tries if not one.is_done])
                waiting = [one for one in tries if not one.is_done]
                if waiting:
                    await self._stream(waiting)
                return
            except CrescendoError as error:
                is_final = not error.retryable and not isinstance(error, InternalError)
                if is_final or attempt == ENGINE_ATTEMPTS:
                    raise
                log.warning("the engine failed: %s; what is missing is asked for again", error.message)

    async def _stream(self, tries: Sequence[_Try], *, is_held: bool = False) -> None:
        """is_held: nothing is sent while an answer is due. grpc.aio forgets the status of a call that the server ends
        while the client is writing, and says INTERNAL instead."""
        answered = asyncio.Event()

        async def requests() -> AsyncIterator[rollout_pb2.GenerateRequest]:
            for number, one in enumerate(tries):
                yield self._request(str(number), one)
            if is_held:
                await answered.wait()

        stream = self._client.stream(self._client.stub.Generate, requests(), timeout_s=self._options.timeout_s)
        async for answer in stream:
            answered.set()
            for delta in answer.deltas:
                one = tries[int(delta.request_id)]
                one.tokens.extend(delta.token_ids)
                one.is_done = delta.finish_reason not in (
                    common_pb2.FINISH_REASON_UNSPECIFIED,
                    common_pb2.FINISH_REASON_ABORTED,
                )
        missing = sum(not one.is_done for one in tries)
        if missing:
            raise DeadlineError(
                f"the engine gave up {missing} of {len(tries)} responses.", fix="Read the engine's log for the reason."
            )

    def _request(self, request_id: str, one: _Try) -> rollout_pb2.GenerateRequest:
        options = self._options
        return rollout_pb2.GenerateRequest(
            request_id=request_id,
            prompt_token_ids=one.prompt,
            max_tokens=options.guess_tokens if one.is_guess else options.max_tokens,
            sampling=common_pb2.Sampling(
                temperature=options.temperature,
                top_p=options.top_p,
                stop_token_ids=self._prompts.stop_token_ids,
            ),
        )


def _count(tally: Tally, one: _Try, is_correct: bool | None) -> None:
    if is_correct is None:
        tally.num_faults += 1
    elif one.is_guess:
        tally.num_guesses += 1
        tally.num_guessed += is_correct
    else:
        tally.num_samples += 1
        tally.num_correct += is_correct
