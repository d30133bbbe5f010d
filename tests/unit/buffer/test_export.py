"""Archived groups as training examples: which answers, in which columns."""

from typing import Any

import pytest

from crescendo.buffer.export import Rules, dpo_examples, is_correct, is_wrong, rollout_examples, sft_examples
from crescendo.common.errors import DataError


def row(
    number: int, verdict: str = "correct", *, tokens: int = 10, finish: str = "stop", **more: Any
) -> dict[str, Any]:
    return {
        "trajectory_id": f"g-s{number:03d}",
        "prompt_id": "p1",
        "prompt": [
            {"role": "system", "text": "Be brief.", "image": ""},
            {"role": "user", "text": "6 * 7", "image": ""},
            {"role": "user", "text": "?", "image": ""},
        ],
        "prompt_text": "<u>6 * 7?<a>",
        "text": f"answer {number}",
        "num_tokens": tokens,
        "finish_reason": finish,
        "components": [{"name": "math", "raw": 1.0, "weight": 1.0, "verdict": verdict, "detail": ""}],
        "chat_template": True,
        **more,
    }


CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}]


def test_sft_takes_correct_answers_shortest_first() -> None:
    rows = [row(0, tokens=30), row(1, "wrong", tokens=5), row(2, tokens=20), row(3, finish="length", tokens=1)]
    found = list(sft_examples(rows, Rules()))
    assert found == [
        {"messages": [*CONVERSATION, {"role": "assistant", "content": f"answer {number}"}]} for number in (2, 0)
    ]
    assert list(sft_examples(rows, Rules(shortest=True))) == found[:1]
    assert list(sft_examples(rows, Rules(max_tokens=25))) == found[:1]
    assert list(sft_examples([rows[1]], Rules())) == []


def test_the_style_follows_the_run_unless_told() -> None:
    plain = row(0, chat_template=False)
    standard = {"prompt": "<u>6 * 7?<a>", "completion": "answer 0"}
    assert list(sft_examples([plain], Rules())) == [standard]
    assert "messages" in next(iter(sft_examples([plain], Rules(style="conversational"))))
    assert list(sft_examples([row(0)], Rules(style="standard"))) == [standard]


def test_dpo_prefers_the_shortest_correct_answer_to_wrong_ones() -> None:
    rows = [row(0, tokens=30), row(1, "wrong", tokens=50), row(2, tokens=20), row(3, "unparsable", tokens=5)]
    (pair,) = dpo_examples(rows, Rules())
    assert pair == {
        "prompt": CONVERSATION,
        "chosen": [{"role": "assistant", "content": "answer 2"}],
        "rejected": [{"role": "assistant", "content": "answer 3"}],
    }
    several = list(dpo_examples(rows, Rules(num_pairs=5, style="standard")))
    assert [one["rejected"] for one in several] == ["answer 3", "answer 1"]
    assert {(one["prompt"], one["chosen"]) for one in several} == {("<u>6 * 7?<a>", "answer 2")}
    assert list(dpo_examples(rows[1:2], Rules())) == [], "nothing correct"
    assert list(dpo_examples(rows[:1], Rules())) == [], "nothing to reject"


def test_long2short_rejects_what_is_longer() -> None:
    rows = [
        row(0, tokens=20),
        row(1, tokens=29),
        row(2, tokens=30),
        row(3, "wrong", tokens=10),
        row(4, "wrong", tokens=21),
        row(5, "wrong", tokens=60, finish="repeat"),
    ]
    pairs = list(dpo_examples(rows, Rules(rejected="longer", num_pairs=9, style="standard")))
    assert [one["rejected"] for one in pairs] == ["answer 4", "answer 2", "answer 5"]
    twice = list(dpo_examples(rows, Rules(rejected="longer", longer_factor=2.0, num_pairs=9, style="standard")))
    assert [one["rejected"] for one in twice] == ["answer 4", "answer 5"]


def test_answers_that_could_not_be_judged_are_neither() -> None:
    for verdict in ("timeout", "sandbox_error", "unsupported", "skipped", "unspecified"):
        judged = row(0, verdict)
        assert not is_correct(judged)
        assert not is_wrong(judged)
    assert not is_correct(row(0, components=[]))
    assert is_wrong(row(0, "skipped", finish="length"))


def test_rollouts_are_everything() -> None:
    rows = [row(0), row(1, "wrong")]
    assert list(rollout_examples(rows, Rules())) == rows


def test_what_a_text_file_cannot_say_is_an_error() -> None:
    with pytest.raises(DataError, match="no tokenizer"):
        list(sft_examples([row(0, text=None)], Rules()))
    with pytest.raises(DataError, match="image"):
        list(sft_examples([row(0, prompt=[{"role": "user", "text": "", "image": "sha256:00"}])], Rules()))
