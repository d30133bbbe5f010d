"""Forced lengths: responses end where the table says, over any number of continuations, and nowhere else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from crescendo.common.errors import ConfigError
from crescendo.common.types import group_id, trajectory_id
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.engine import EngineOutput, EngineRequest, EngineSettings, make_engine
from crescendo.rollout.engine.base import Engine
from crescendo.rollout.engine.forced import ForcedLengthEngine, read_lengths

LENGTHS = [[[5, 40], [7, 9]], [[3, 3], [11, 2]]]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """A scripted engine, whose own responses have 12 tokens, under forced lengths."""
    table = tmp_path / "lengths.json"
    table.write_text(json.dumps(LENGTHS))
    settings = EngineSettings(
        model_path="none",
        max_sequence_tokens=128,
        vocabulary_size=16,
        eos_token_ids=(15,),
        options={"scripted.lengths": "fixed:12", "forced_lengths": str(table)},
    )
    return make_engine("scripted", settings)


def request(iteration: int, draw: int, sample: int, max_tokens: int = 100) -> EngineRequest:
    """A claim of one trajectory, named as the rollout phase names it."""
    name = f"{trajectory_id(group_id(0, iteration, draw), sample)}#1"
    return EngineRequest(name, [1, 2, 3], max_tokens, common_pb2.Sampling(temperature=1.0))


def run(engine: Engine, asked: EngineRequest) -> tuple[list[int], int]:
    """All tokens of a request and why it ended."""
    engine.add(asked)
    tokens: list[int] = []
    for _ in range(200):
        for output in engine.step():
            assert isinstance(output, EngineOutput)
            tokens += output.token_ids
            if output.finish_reason != common_pb2.FINISH_REASON_UNSPECIFIED:
                return tokens, output.finish_reason
    raise AssertionError("the request did not end")


@pytest.mark.parametrize(("draw", "sample"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("iteration", [1, 2, 3])
def test_a_trajectory_ends_at_its_length(engine: Engine, iteration: int, draw: int, sample: int) -> None:
    tokens, reason = run(engine, request(iteration, draw, sample))
    assert len(tokens) == LENGTHS[(iteration - 1) % 2][draw][sample]
    assert reason == common_pb2.FINISH_REASON_STOP


def test_a_budget_ends_a_request_before_and_the_rest_follows(engine: Engine) -> None:
    first, reason = run(engine, request(1, 0, 1, max_tokens=16))
    assert (len(first), reason) == (16, common_pb2.FINISH_REASON_LENGTH)
    again = replace(request(1, 0, 1), request_id="b0-i000001-d0000-s001#2", generated_token_ids=first)
    rest, reason = run(engine, again)
    assert (len(rest), reason) == (24, common_pb2.FINISH_REASON_STOP)


def test_nothing_else_ends_a_trajectory(engine: Engine) -> None:
    tokens, _ = run(engine, request(1, 0, 1))
    assert isinstance(engine, ForcedLengthEngine)
    seen: list[EngineRequest] = []
    engine._engine.add = seen.append  # type: ignore[method-assign]
    stops = common_pb2.Sampling(temperature=0.5, stop_token_ids=[15, tokens[0]])
    engine.add(replace(request(1, 0, 1), sampling=stops))
    assert seen[0].ignore_eos
    assert list(seen[0].sampling.stop_token_ids) == []
    assert seen[0].sampling.temperature == 0.5
    assert list(stops.stop_token_ids) == [15, tokens[0]]


def test_requests_outside_the_ledger_are_left_alone(engine: Engine) -> None:
    tokens, reason = run(engine, replace(request(1, 0, 0), request_id="validation-0-1"))
    assert (len(tokens), reason) == (12, common_pb2.FINISH_REASON_STOP)


@pytest.mark.parametrize("text", ["", "{}", "[[[0]]]", '[[["a"]]]', "[3]"])
def test_a_broken_table_is_refused(tmp_path: Path, text: str) -> None:
    table = tmp_path / "lengths.json"
    table.write_text(text)
    with pytest.raises(ConfigError, match="lengths"):
        read_lengths(table)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_lengths(tmp_path / "none.json")


def test_no_table_means_no_wrapper() -> None:
    settings = EngineSettings(model_path="none", max_sequence_tokens=8, vocabulary_size=4, eos_token_ids=(3,))
    assert not isinstance(make_engine("scripted", settings), ForcedLengthEngine)
