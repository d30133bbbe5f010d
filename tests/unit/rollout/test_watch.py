"""Stop strings, and how they go together with the repetition rule."""

from collections.abc import Sequence

import pytest

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.watch import ResponseWatch

NO_RULE = common_pb2.RepetitionRule()


def letters(token_ids: Sequence[int]) -> str:
    return "".join(chr(one) for one in token_ids)


def tokens(text: str) -> list[int]:
    return [ord(one) for one in text]


def test_ends_with_the_token_that_completes_a_stop_string() -> None:
    watch = ResponseWatch(NO_RULE, ["</a>", "#"], letters)
    assert watch.end_of(tokens("x</")) is None
    assert watch.end_of(tokens("a>yz")) == (2, common_pb2.FINISH_REASON_STOP)


def test_a_stop_string_across_a_continuation_counts() -> None:
    watch = ResponseWatch(NO_RULE, ["</a>"], letters, earlier=tokens("long text </a"))
    assert watch.end_of(tokens(">")) == (1, common_pb2.FINISH_REASON_STOP)


def test_text_before_the_continuation_does_not_end_it_again() -> None:
    watch = ResponseWatch(NO_RULE, ["#"], letters, earlier=tokens("abcdefgh"))
    assert watch.end_of(tokens("ij")) is None


def test_repetition_wins_when_it_comes_first() -> None:
    rule = common_pb2.RepetitionRule(ngram_tokens=2, window_tokens=8, count=2)
    watch = ResponseWatch(rule, ["#"], letters)
    assert watch.end_of(tokens("aa#")) == (2, common_pb2.FINISH_REASON_REPEAT)


def test_stop_strings_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(RequestError, match=r"tokenizer\.json"):
        ResponseWatch(NO_RULE, ["#"], None)
