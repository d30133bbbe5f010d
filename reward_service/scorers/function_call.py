"""function_call: the right functions are called with the right arguments.

A call is a JSON object {"name": ..., "arguments": {...}} in <tool_call> tags, one a tag, or a list of them (or one) as
the answer. The gold answer is a call or a list of calls, as JSON. `arguments` may also be a string of JSON, as OpenAI's
format has it. Where metadata.tools holds the tools' schemas, arguments must satisfy the called tool's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from crescendo.proto.v1.common_pb2 import VERDICT_WRONG
from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer, judged, unparsable, unsupported
from crescendo.reward_service.scorers.json_schema import first_error, validator_of
from crescendo.reward_service.scorers.structured import NotReadableError, answer_part, read_json
from crescendo.reward_service.typed_options import option

MAX_CALLS = 64
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class FunctionCallOptions:
    """Options of function_call."""

    ordered: bool = option(True, "several calls must come in the gold answer's order")
    function_value: float = option(
        0.0, "value where every function is right and some argument is not", at_least=0, at_most=1
    )
    tools: str = option("tools", "metadata field with the tools' schemas, as a JSON list", pattern=r"[A-Za-z_][\w.-]*")
    tag: str = option("answer", "without <tool_call> tags: the calls are in the last such tag or fence")


@dataclass(frozen=True, order=True)
class Call:
    """One call. arguments: as canonical JSON, in which 1 and 1.0 and true differ as JSON says."""

    name: str
    arguments: str


def score(sample: Sample, options: FunctionCallOptions) -> Outcome:
    """1 if the calls are the gold ones; function_value if only the functions are; unparsable without calls."""
    golds = [calls for text in sample.gold_answers if (calls := _gold(text))]
    if not golds:
        return unsupported("no gold answer is a call or a list of calls")
    try:
        found = read_calls(sample.text, options.tag)
    except NotReadableError as error:
        return unparsable(str(error))
    try:
        wrong = _breaks_schema(found, sample.metadata.get(options.tools, ""))
    except LookupError as error:
        return unsupported(str(error))
    if not wrong and any(_same(found, gold, options.ordered) for gold in golds):
        return judged(True)
    right_functions = any(_same(_names(found), _names(gold), options.ordered) for gold in golds)
    detail = wrong or ("the arguments differ" if right_functions else "the functions differ")
    return Outcome(options.function_value * right_functions, VERDICT_WRONG, detail)


def read_calls(text: str, tag: str) -> list[Call]:
    """The calls of a response, in order; raises NotReadableError."""
    parts = _tagged_parts(text)
    values = [read_json(part.strip()) for part in parts] if parts else [read_json(answer_part(text, tag))]
    flat = [call for value in values for call in (value if isinstance(value, list) else [value])]
    if not flat or len(flat) > MAX_CALLS:
        raise NotReadableError(f"{len(flat)} calls; 1 to {MAX_CALLS} are read")
    return [_call(value) for value in flat]


def _tagged_parts(text: str) -> list[str]:
    parts: list[str] = []
    at = text.find(_OPEN)
    while at >= 0 and len(parts) <= MAX_CALLS:
        end = text.find(_CLOSE, at)
        if end < 0:
            raise NotReadableError(f"{_OPEN} is not closed")
        parts.append(text[at + len(_OPEN) : end])
        at = text.find(_OPEN, end)
    return parts


def _call(value: Any) -> Call:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name:
        raise NotReadableError("a call is an object with a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = read_json(arguments)
    if not isinstance(arguments, dict):
        raise NotReadableError(f"the arguments of {name[:40]} are not an object")
    return Call(name, _canonical(arguments))


def _canonical(value: Mapping[str, Any]) -> str:
    # Numbers equal as JSON numbers are written alike: 2.0 as 2.
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@lru_cache(maxsize=4096)
def _gold(text: str) -> tuple[Call, ...]:
    try:
        value = read_json(text)
        return tuple(_call(item) for item in (value if isinstance(value, list) else [value]))
    except NotReadableError:
        return ()


def _same(found: Sequence[Call], gold: Sequence[Call], is_ordered: bool) -> bool:
    return list(found) == list(gold) if is_ordered else sorted(found) == sorted(gold)


def _names(calls: Sequence[Call]) -> list[Call]:
    return [Call(call.name, "") for call in calls]


@lru_cache(maxsize=256)
def _schemas(tools_text: str) -> Mapping[str, str]:
    """The parameters' schemas by function name, as JSON."""
    try:
        tools = read_json(tools_text)
    except NotReadableError:
        return {}
    listed = tools if isinstance(tools, list) else []
    functions = [tool.get("function", tool) for tool in listed if isinstance(tool, dict)]
    return {
        function["name"]: json.dumps(function.get("parameters", {}))
        for function in functions
        if isinstance(function, dict) and isinstance(function.get("name"), str)
    }


def _breaks_schema(calls: Sequence[Call], tools_text: str) -> str:
    schemas = _schemas(tools_text) if tools_text else {}
    for call in calls if schemas else ():
        if call.name not in schemas:
            return "a function that there is not is called"
        validator = validator_of(schemas[call.name])
        if validator is not None and first_error(validator, json.loads(call.arguments)):
            return f"the arguments of {call.name[:40]} break its schema"
    return ""


SCORER = Scorer(
    name="function_call",
    source="function-call suites: schema-valid, right function, right arguments",
    low=0.0,
    high=1.0,
    options=FunctionCallOptions,
    score=score,
    preload=("jsonschema", "referencing"),
)
