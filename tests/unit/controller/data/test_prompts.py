"""Rows become prompts or are set aside with a reason; the same config gives the same prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crescendo.common.config.schema import DataConfig, DataSourceConfig
from crescendo.common.errors import DataError
from crescendo.common.tokenizer import Tokenizer
from crescendo.controller.data import PromptSet, load_prompts

GOOD = [{"question": f"How much is {i} + {i}?", "answer": f"Two times {i}.\n#### {2 * i}"} for i in range(20)]
ANY = DataConfig(max_bad_rows=1.0)


def load(
    tmp_path: Path, rows: list[Any], tokenizer: Tokenizer, data: DataConfig = ANY, **options: Any
) -> tuple[PromptSet, list[dict[str, Any]]]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    names = ("domains", "held_out")
    others = {name: options.pop(name) for name in names if name in options}
    source = DataSourceConfig(**({"path": str(path), "answer_after": "####"} | options))
    set_aside: list[dict[str, Any]] = []
    prompts = load_prompts(source, data, tokenizer, quarantine=lambda row: set_aside.append(dict(row)), **others)
    return prompts, set_aside


def test_a_prompt_has_everything_that_later_steps_need(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = DataConfig(system_prompt="Be exact.", template="{question} Think.")
    prompts, set_aside = load(tmp_path, GOOD, tokenizer, data)
    assert (len(prompts), prompts.num_rows, set_aside) == (20, 20, [])
    prompt = prompts.prompts[3]
    assert [(part.role, part.text) for part in prompt.parts] == [
        ("system", "Be exact."), ("user", "How much is 3 + 3? Think."),
    ]  # fmt: skip
    assert list(prompt.gold_answers) == ["6"]
    assert prompt.domain == "math"
    assert not prompt.HasField("difficulty")
    assert tokenizer.decode(prompt.token_ids, skip_special_tokens=False) == (
        "<|system|>Be exact.<|end|><|user|>How much is 3 + 3? Think.<|end|><|assistant|>"
    )


def test_without_chat_template_the_message_stands_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = DataConfig(chat_template=False, system_prompt="unused", template="Q: {question} {0} A:")
    prompts, _ = load(tmp_path, GOOD[:1], tokenizer, data)
    assert tokenizer.decode(prompts.prompts[0].token_ids) == "Q: How much is 0 + 0? {0} A:"


BAD_ROWS = {
    "not JSON": '{"question": ',
    "row is a JSON list": [],
    "question is missing (column 'question')": {"answer": "#### 1"},
    "answer is missing": {"question": "q1"},
    "question is empty": {"question": " \n", "answer": "#### 1"},
    "question is a int, not a string": {"question": 5, "answer": "#### 1"},
    "answer is a float, not a string": {"question": "q2", "answer": 0.5},
    "answer is a bool, not a string": {"question": "q3", "answer": True},
    "answer is empty after '####'": {"question": "q4", "answer": "thought ####  "},
    "answer has no marker '####'": {"question": "q5", "answer": "5"},
    "question is not valid Unicode": '{"question": "\\ud800", "answer": "#### 1"}',
    "answer is a dict, not a string": {"question": "q6", "answer": {"value": 5}},
    "prompt has": {"question": "long " * 100, "answer": "#### 1"},
    "was used by row 1": GOOD[0],
}


def test_bad_rows_are_set_aside_with_reason_and_number(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = DataConfig(max_prompt_tokens=100, max_bad_rows=1.0)
    prompts, set_aside = load(tmp_path, [*GOOD, *BAD_ROWS.values()], tokenizer, data)
    assert len(prompts) == 20
    assert (prompts.num_rows, prompts.num_quarantined) == (20 + len(BAD_ROWS), len(BAD_ROWS))
    assert [entry["row"] for entry in set_aside] == list(range(21, 21 + len(BAD_ROWS)))
    for entry, reason in zip(set_aside, BAD_ROWS, strict=True):
        assert reason in entry["reason"]
        assert entry["source"] == "data.train"
        assert entry["file"].endswith("rows.jsonl")
        json.dumps(entry)


def test_too_many_bad_rows_are_an_error_that_names_file_count_reasons_and_fix(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = [*GOOD[:17], {}, {"question": ""}, {"question": "x", "answer": ""}]
    load(tmp_path, rows, tokenizer, DataConfig(max_bad_rows=0.15))
    with pytest.raises(DataError) as caught:
        load(tmp_path, rows, tokenizer, DataConfig(max_bad_rows=0.14))
    text = str(caught.value)
    for expected in ("3 of 20 rows", "rows.jsonl", "15.0%", "row 18:", "row 19:", "row 20:", "data.max_bad_rows"):
        assert expected in text


def test_no_usable_row_is_an_error_even_when_all_may_be_bad(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="no usable row"):
        load(tmp_path, [{}], tokenizer)
    with pytest.raises(DataError, match="no usable row"):
        load(tmp_path, [], tokenizer)


def test_columns_are_mapped_and_difficulty_is_scaled(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [
        {
            "problem": f"p{level}",
            "solution": [f"{level}", 7],
            "level": f"Level {level}",
            "kind": "code",
            "key": 40 + level,
        }
        for level in (1, 3, 5)
    ]
    rows.append(rows[0] | {"key": 50, "level": "Level ?"})
    columns = {"question": "problem", "answer": "solution", "difficulty": "level", "domain": "kind", "id": "key"}
    prompts, set_aside = load(tmp_path, rows, tokenizer, columns=columns, answer_after="", domains={"code"})
    assert [prompt.difficulty for prompt in prompts.prompts] == [0.0, 0.5, 1.0]
    assert prompts.difficulties == (0.0, 0.5, 1.0)
    assert [prompt.prompt_id for prompt in prompts.prompts] == ["41", "43", "45"]
    assert list(prompts.prompts[1].gold_answers) == ["3", "7"]
    assert {prompt.domain for prompt in prompts.prompts} == {"code"}
    assert [entry["reason"] for entry in set_aside] == ["difficulty is not a number"]


def test_columns_that_are_not_mapped_are_not_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [GOOD[0] | {"difficulty": "nonsense", "id": [], "domain": 5}]
    prompts, _ = load(tmp_path, rows, tokenizer)
    assert prompts.difficulties == (None,)


def test_scorers_get_the_columns_that_the_run_file_names(tmp_path: Path, tokenizer: Tokenizer) -> None:
    schema = {"type": "object"}
    rows = [GOOD[0] | {"form": schema, "n": 3, "other": "x"}, GOOD[1] | {"form": None}, GOOD[2] | {"form": " "}]
    prompts, set_aside = load(tmp_path, rows, tokenizer, metadata={"schema": "form", "count": "n"})
    assert [dict(prompt.metadata) for prompt in prompts.prompts] == [{"schema": json.dumps(schema), "count": "3"}, {}]
    assert [entry["reason"] for entry in set_aside] == ["schema is empty"]


def test_a_row_of_a_domain_without_reward_chain_is_set_aside(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [GOOD[0] | {"kind": "math"}, GOOD[1] | {"kind": "music"}]
    prompts, set_aside = load(tmp_path, rows, tokenizer, columns={"domain": "kind"}, domains={"math"})
    assert len(prompts) == 1
    assert set_aside[0]["reason"] == "domain 'music' has no reward chain"


def test_num_prompts_counts_good_rows_and_reads_no_further(tmp_path: Path, tokenizer: Tokenizer) -> None:
    prompts, _ = load(tmp_path, [{}, *GOOD, *[{}] * 50], tokenizer, DataConfig(max_bad_rows=0.2), num_prompts=5)
    assert (len(prompts), prompts.num_rows, prompts.num_quarantined) == (5, 6, 1)


def test_held_out_questions_stay_out_of_training_whatever_their_white_space(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    validation, _ = load(tmp_path, GOOD[:3], tokenizer)
    rows = [GOOD[0] | {"question": "  How much  is 0 +\n0? "}, *GOOD[1:6]]
    train, set_aside = load(tmp_path, rows, tokenizer, held_out=validation.fingerprints)
    assert (len(train), train.num_held_out, set_aside) == (3, 3, [])
    assert not train.fingerprints & validation.fingerprints


def test_ids_are_stable_and_follow_the_content(tmp_path: Path, tokenizer: Tokenizer) -> None:
    first, _ = load(tmp_path, GOOD, tokenizer)
    again, _ = load(tmp_path, list(reversed(GOOD)), tokenizer)
    assert [p.prompt_id for p in again.prompts] == [p.prompt_id for p in reversed(first.prompts)]
    assert len({p.prompt_id for p in first.prompts}) == 20


def test_a_chat_template_that_is_missing_is_said_at_once(tmp_path: Path, characters: Tokenizer) -> None:
    with pytest.raises(DataError, match="no chat template"):
        load(tmp_path, GOOD, characters)


def test_text_that_the_tokenizer_lacks_is_set_aside(tmp_path: Path, characters: Tokenizer) -> None:
    rows = [{"question": "3a1?", "answer": "4"}, {"question": "Was?", "answer": "4"}]
    data = DataConfig(chat_template=False, max_bad_rows=1.0)
    prompts, set_aside = load(tmp_path, rows, characters, data, answer_after="")
    assert len(prompts) == 1
    assert "cannot encode" in set_aside[0]["reason"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["question", "answer", "level"]), inner, max_size=3), max_leaves=8,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(json_values, max_size=8))
def test_no_row_breaks_the_loader(tmp_path: Path, tokenizer: Tokenizer, rows: list[Any]) -> None:
    """Whatever JSON comes: each row is a prompt or set aside, none is lost."""
    rows = [*rows, GOOD[0]]
    path = tmp_path / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSourceConfig(path=str(path), columns={"difficulty": "level"})
    prompts = load_prompts(source, ANY, tokenizer)
    assert prompts.num_rows == len(rows)
    assert len(prompts) + prompts.num_quarantined == len(rows)
