"""What every scorer promises: a value in its range, no exception on any bytes, the same answer twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.scorers import SCORERS, Outcome, Sample, Scorer

PIECES = st.sampled_from(
    [
        *(
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            "<tool_call>",
            "</tool_call>",
            "\\boxed{",
            "}",
            "{",
            "[",
            "]",
        ),
        *(
            "```json\n",
            "```",
            "$",
            "7",
            "[0, 0, 10, 10]",
            '{"name": "f"}',
            "answer is ",
            "B",
            "\\frac{1}{2}",
            "\n",
            ",",
        ),
        *('"bbox_2d": ', '"score": 1', '{"nonce": "n", "correct": true}', '{"data": [', "-", "1e999", "\u0000", "жук"),
    ]
)
TEXTS = st.one_of(
    st.binary(max_size=200).map(lambda data: data.decode("utf-8", "replace")),
    st.lists(PIECES, max_size=12).map("".join),
)
GOLDS = ("7", "B", "[0, 0, 10, 10]", '{"name": "f", "arguments": {}}')
METADATA = {
    "schema": '{"type": "object"}',
    "reference_reward": "0.5",
    "choices": '["one", "two"]',
    "nonce": "n",
    "dataset": "chain_sum",
    "entry": '{"question": "?", "answer": "7", "metadata": {}}',
}
PURE = {name: scorer for name, scorer in SCORERS.items() if isinstance(scorer, Scorer)}


@pytest.mark.parametrize("name", PURE)
@settings(max_examples=25, deadline=None)
@given(text=TEXTS)
def test_any_text_gets_a_value_in_range(name: str, text: str) -> None:
    scorer = PURE[name]
    sample = Sample(text, GOLDS, METADATA, "question <think>", len(text), common_pb2.FINISH_REASON_STOP)
    outcome = scorer.score(sample, scorer.options())
    assert isinstance(outcome, Outcome)
    assert scorer.low <= outcome.raw <= scorer.high
    assert scorer.score(sample, scorer.options()) == outcome
    if outcome.verdict in (common_pb2.VERDICT_UNPARSABLE, common_pb2.VERDICT_UNSUPPORTED):
        assert outcome.raw <= max(0.0, scorer.low)


@pytest.mark.parametrize("name", PURE)
def test_bare_items_are_answered(name: str) -> None:
    scorer = PURE[name]
    outcome = scorer.score(Sample(""), scorer.options())
    assert outcome.verdict != common_pb2.VERDICT_CORRECT
