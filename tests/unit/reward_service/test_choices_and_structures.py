"""multiple_choice, json_schema and function_call."""

import json

import pytest

from crescendo.proto.v1 import common_pb2
from crescendo.reward_service.scorers import Sample, function_call, json_schema, multiple_choice
from crescendo.reward_service.scorers.structured import NotReadableError, answer_part, read_json

CORRECT, WRONG = common_pb2.VERDICT_CORRECT, common_pb2.VERDICT_WRONG
UNPARSABLE, UNSUPPORTED = common_pb2.VERDICT_UNPARSABLE, common_pb2.VERDICT_UNSUPPORTED

CHOICES = json.dumps(["a cat", "a dog", "A and B", "none"])


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (r"\boxed{B}", CORRECT),
        (r"\boxed{\text{B}}", CORRECT),
        (r"\boxed{(B)}", CORRECT),
        ("<answer>B</answer>", CORRECT),
        ("<answer>b</answer>", CORRECT),
        ("<answer>B. a dog</answer>", CORRECT),
        ("<answer>a dog</answer>", CORRECT),
        ("So the answer is (B).", CORRECT),
        ("**Answer: B** because", CORRECT),
        ("The answer is B. A is wrong", CORRECT),
        (r"\boxed{A}", WRONG),
        (r"\boxed{A, B}", WRONG),
        (r"\boxed{ABCD}", UNPARSABLE),
        ("<answer>A or B</answer>", WRONG),
        ("A dog is B", UNPARSABLE),
        ("the answer is hard to tell", UNPARSABLE),
        ("", UNPARSABLE),
        (r"\boxed{B} no, \boxed{A}", WRONG),
    ],
)
def test_multiple_choice(text: str, verdict: int) -> None:
    outcome = multiple_choice.score(Sample(text, ("B",), {"choices": CHOICES}), multiple_choice.ChoiceOptions())
    assert outcome.verdict == verdict
    assert outcome.raw == float(verdict == CORRECT)


def test_a_choice_may_be_named_by_its_text() -> None:
    options = multiple_choice.ChoiceOptions()
    assert multiple_choice.score(Sample("<answer>B</answer>", ("a dog",), {"choices": CHOICES}), options).raw == 1.0
    # A choice whose text has letters in it is still one choice.
    both = Sample("<answer>C. A and B</answer>", ("C",), {"choices": CHOICES})
    assert multiple_choice.score(both, options).raw == 1.0
    assert multiple_choice.score(Sample("<answer>B</answer>", ("a bird",)), options).verdict == UNSUPPORTED
    assert multiple_choice.score(Sample("<answer>K</answer>", ("K",)), options).verdict == UNSUPPORTED


SCHEMA = json.dumps({"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]})


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"age": 3}', CORRECT),
        ('<answer>{"age": 3}</answer>', CORRECT),
        ('Here you are:\n```json\n{"age": 3}\n```', CORRECT),
        ('{"age": -1}', WRONG),
        ("{}", WRONG),
        ("[]", WRONG),
        ("{'age': 3}", UNPARSABLE),
        ('{"age": NaN}', UNPARSABLE),
        ('{"age": 3} and more', UNPARSABLE),
        ("", UNPARSABLE),
        ("[" * 100_000, UNPARSABLE),
    ],
)
def test_json_schema(text: str, verdict: int) -> None:
    outcome = json_schema.score(Sample(text, metadata={"schema": SCHEMA}), json_schema.JsonSchemaOptions())
    assert outcome.verdict == verdict


@pytest.mark.parametrize("schema", ["", "no JSON", "[]", '{"type": "thing"}'])
def test_without_a_schema_there_is_no_verdict(schema: str) -> None:
    outcome = json_schema.score(Sample("{}", metadata={"schema": schema}), json_schema.JsonSchemaOptions())
    assert outcome.verdict == UNSUPPORTED


def test_a_reference_to_another_document_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    schema = json.dumps({"$ref": "http://127.0.0.1:9/schema.json"})
    outcome = json_schema.score(Sample("{}", metadata={"schema": schema}), json_schema.JsonSchemaOptions())
    assert outcome.verdict == UNSUPPORTED
    assert "refers" in outcome.detail


WEATHER = '{"name": "weather", "arguments": {"city": "Rome", "days": 2}}'
TIME = '{"name": "time", "arguments": {}}'
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            },
        }
    ]
)


@pytest.mark.parametrize(
    ("text", "gold", "raw"),
    [
        (f"<tool_call>{WEATHER}</tool_call>", WEATHER, 1.0),
        (f"I call it: <tool_call>\n{WEATHER}\n</tool_call>", f"[{WEATHER}]", 1.0),
        (WEATHER, WEATHER, 1.0),
        ('{"name": "weather", "arguments": {"days": 2.0, "city": "Rome"}}', WEATHER, 1.0),  # order, 2 and 2.0
        ('{"name": "weather", "arguments": "{\\"days\\": 2, \\"city\\": \\"Rome\\"}"}', WEATHER, 1.0),
        (f'{{"type": "function", "function": {WEATHER}}}', WEATHER, 1.0),
        ('{"name": "weather", "arguments": {"city": "rome", "days": 2}}', WEATHER, 0.25),
        ('{"name": "weather", "arguments": {"city": "Rome", "days": 2, "hours": 1}}', WEATHER, 0.25),
        ('{"name": "weather", "arguments": {"city": "Rome", "days": true}}', WEATHER, 0.25),
        (TIME, WEATHER, 0.0),
        (f"<tool_call>{WEATHER}</tool_call><tool_call>{TIME}</tool_call>", WEATHER, 0.0),
        (f"<tool_call>{WEATHER}</tool_call><tool_call>{TIME}</tool_call>", f"[{WEATHER}, {TIME}]", 1.0),
        (f"[{TIME}, {WEATHER}]", f"[{WEATHER}, {TIME}]", 0.0),
    ],
)
def test_function_calls(text: str, gold: str, raw: float) -> None:
    options = function_call.FunctionCallOptions(function_value=0.25)
    outcome = function_call.score(Sample(text, (gold,)), options)
    assert outcome.raw == raw
    assert outcome.verdict == (CORRECT if raw == 1.0 else WRONG)


def test_the_order_of_calls_may_not_matter() -> None:
    sample = Sample(f"[{TIME}, {WEATHER}]", (f"[{WEATHER}, {TIME}]",))
    assert function_call.score(sample, function_call.FunctionCallOptions(ordered=False)).raw == 1.0


def test_arguments_must_satisfy_the_tool() -> None:
    gold = '{"name": "weather", "arguments": {"days": 2}}'
    sample = Sample(gold, (gold,), {"tools": TOOLS})
    outcome = function_call.score(sample, function_call.FunctionCallOptions())
    assert (outcome.raw, outcome.verdict) == (0.0, WRONG)
    assert "schema" in outcome.detail
    unknown = Sample(TIME, (TIME,), {"tools": TOOLS})
    assert function_call.score(unknown, function_call.FunctionCallOptions()).verdict == WRONG


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no call",
        "<tool_call>{}",
        "<tool_call>nothing</tool_call>",
        '{"name": 3}',
        '{"name": "f", "arguments": 3}',
        "[]",
    ],
)
def test_what_is_no_call(text: str) -> None:
    outcome = function_call.score(Sample(text, (WEATHER,)), function_call.FunctionCallOptions())
    assert (outcome.raw, outcome.verdict) == (0.0, UNPARSABLE)


def test_json_is_read_within_bounds() -> None:
    assert read_json('{"a": [1, 2.5, "x"]}') == {"a": [1, 2.5, "x"]}
    assert answer_part("a ```\n1\n``` b ```json\n2\n```", "") == "2"
    assert read_json("{'a': (1, 2)}", python_literals=True) == {"a": (1, 2)}
    for text in ("[" * 65 + "]" * 65, "1" * (1 << 19), "9" * 5000, "Infinity", "a()"):
        with pytest.raises(NotReadableError):
            read_json(text, python_literals=True)
