"""Pass rates and guesses, over an engine and an executor that are gRPC stand-ins in this process."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from crescendo.common.errors import CrescendoError, DataError, DeadlineError, RequestError, WorkerLostError
from crescendo.common.rpc import Client, Endpoint, guarded, guarded_stream, serve
from crescendo.common.rpc.status import Context, to_detail
from crescendo.proto.v1 import common_pb2, reward_pb2, reward_pb2_grpc, rollout_pb2, rollout_pb2_grpc
from crescendo.reward_service.data import AttemptOptions, Attempts, Grader, Prompts, Question
from crescendo.reward_service.executors import Executors

OPTIONS = AttemptOptions(num_samples=4, num_guesses=2, max_tokens=50, guess_tokens=3, guess_prefix=">")
GUESS_MARK = 0


class Engine(rollout_pb2_grpc.RolloutServiceServicer):
    """Answers with the prompt's characters, reversed; `script` may end a stream first."""

    def __init__(self, script: Callable[[int, rollout_pb2.GenerateRequest], CrescendoError | None]) -> None:
        self.requests: list[rollout_pb2.GenerateRequest] = []
        self.num_streams = 0
        self._script = script

    @guarded_stream
    async def Generate(
        self, request: AsyncIterator[rollout_pb2.GenerateRequest], context: Context
    ) -> AsyncIterator[rollout_pb2.GenerateResponse]:
        self.num_streams += 1
        async for one in request:
            self.requests.append(one)
            error = self._script(self.num_streams, one)
            if error is not None:
                raise error
            half = len(one.prompt_token_ids) // 2
            tokens = list(reversed(one.prompt_token_ids))
            for part, reason in ((tokens[:half], 0), (tokens[half:], common_pb2.FINISH_REASON_STOP)):
                delta = rollout_pb2.GenerateDelta(
                    request_id=one.request_id, token_ids=part, finish_reason=reason  # type: ignore[arg-type]
                )  # fmt: skip
                yield rollout_pb2.GenerateResponse(deltas=[delta])


class Judge(reward_pb2_grpc.ExecutorServiceServicer):
    """Right is what ends with the gold answer; the gold `lost` is a fault."""

    @guarded
    async def Execute(self, request: reward_pb2.ExecuteRequest, context: Context) -> reward_pb2.ExecuteResponse:
        return reward_pb2.ExecuteResponse(results=[self._result(item) for item in request.items])

    @staticmethod
    def _result(item: reward_pb2.ScoreItem) -> reward_pb2.ScoreResult:
        if item.gold_answers[0] == "lost":
            return reward_pb2.ScoreResult(item_id=item.item_id, fault=to_detail(WorkerLostError("gone")))
        is_right = item.response.decode().endswith(item.gold_answers[0])
        verdict = common_pb2.VERDICT_CORRECT if is_right else common_pb2.VERDICT_WRONG
        component = common_pb2.RewardComponent(name="exact_match", raw=float(is_right), weight=1.0, verdict=verdict)
        return reward_pb2.ScoreResult(item_id=item.item_id, components=[component])


def prompts() -> Prompts:
    def sample(text: str) -> Sequence[int]:
        if "\t" in text:
            raise DataError("a tab cannot be encoded.")
        return [ord(character) for character in text]

    return Prompts(
        sample=sample,
        guess=lambda text: [*sample(text), GUESS_MARK],
        decode=lambda tokens: "".join(chr(token) for token in tokens),
        stop_token_ids=(7,),
    )


@asynccontextmanager
async def attempts(engine: Engine, options: AttemptOptions = OPTIONS) -> AsyncIterator[Attempts]:
    below = await serve(lambda one: rollout_pb2_grpc.add_RolloutServiceServicer_to_server(engine, one), ["engine"])
    judge = await serve(lambda one: reward_pb2_grpc.add_ExecutorServiceServicer_to_server(Judge(), one), ["judge"])
    client = Client(Endpoint(below.address), rollout_pb2_grpc.RolloutServiceStub)
    executors = await Executors.connect(judge.address)
    try:
        yield Attempts(client, Grader(executors, "exact_match", {}, 5.0), prompts(), options)
    finally:
        await executors.close()
        await client.close()
        await below.stop(0.1)
        await judge.stop(0.1)


def question(text: str, gold: str) -> Question:
    return Question("f", 1, text, text, (gold,))


def never(stream: int, request: rollout_pb2.GenerateRequest) -> CrescendoError | None:
    return None


async def test_samples_and_guesses_are_counted_apart() -> None:
    engine = Engine(never)
    async with attempts(engine) as running:
        both, wrong, lost, tab = await running.tallies(
            [question("abc", "a"), question("xyz", "z"), question("k", "lost"), question("a\tb", "a")]
        )
    assert (both.num_samples, both.num_correct, both.num_guesses, both.num_guessed) == (4, 4, 2, 2)
    assert both.pass_rate == 1.0
    assert (wrong.pass_rate, wrong.num_guessed) == (0.0, 0)
    assert (lost.pass_rate, lost.num_faults) == (None, 6)
    assert tab.problem == "a tab cannot be encoded."
    lengths = {request.max_tokens for request in engine.requests}
    guesses = [request for request in engine.requests if request.prompt_token_ids[-1] == GUESS_MARK]
    assert lengths == {50, 3}
    assert len(guesses) == 6
    assert all(request.max_tokens == 3 for request in guesses)
    assert list(engine.requests[0].sampling.stop_token_ids) == [7]


async def test_an_engine_that_fails_is_asked_for_the_rest_again() -> None:
    def once(stream: int, request: rollout_pb2.GenerateRequest) -> CrescendoError | None:
        return WorkerLostError("restarting") if stream == 3 and request.request_id == "3" else None

    engine = Engine(once)
    async with attempts(engine) as running:
        (only,) = await running.tallies([question("abc", "a")])
    # A sample and a guess ahead, then the other four; what was answered before the failure is not asked again.
    assert (only.num_samples, only.num_guesses, engine.num_streams) == (4, 2, 4)
    assert [request.request_id for request in engine.requests] == ["0", "0", "0", "1", "2", "3", "0"]


async def test_a_refused_prompt_is_blamed_alone() -> None:
    def refuse(stream: int, request: rollout_pb2.GenerateRequest) -> CrescendoError | None:
        return RequestError("too long") if len(request.prompt_token_ids) > 5 else None

    async with attempts(Engine(refuse)) as running:
        good, bad = await running.tallies([question("abc", "a"), question("abcdefgh", "a")])
    assert good.pass_rate == 1.0
    assert (bad.problem, bad.num_samples) == ("too long", 0)


async def test_an_engine_that_stays_away_is_an_error() -> None:
    async with attempts(Engine(lambda stream, request: DeadlineError("asleep"))) as running:
        with pytest.raises(DeadlineError, match="asleep"):
            await running.tallies([question("abc", "a")])


async def test_a_wrong_scorer_is_named() -> None:
    with pytest.raises(RequestError, match="nonsense"):
        Grader(await Executors.connect("127.0.0.1:1"), "nonsense", {}, 1.0)
