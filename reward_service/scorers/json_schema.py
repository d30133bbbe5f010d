"""json_schema: the response is JSON that satisfies the prompt's schema.

The schema is the data set's (metadata.schema), in the dialect that its `$schema` names, else 2020-12. References to
other documents are not followed: nothing is fetched.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from crescendo.reward_service.scorers.base import Outcome, Sample, Scorer, judged, unparsable, unsupported
from crescendo.reward_service.scorers.structured import NotReadableError, answer_part, read_json
from crescendo.reward_service.typed_options import option

MAX_SHOWN = 160


@dataclass(frozen=True)
class JsonSchemaOptions:
    """Options of json_schema."""

    schema: str = option("schema", "metadata field with the schema, as JSON", pattern=r"[A-Za-z_][\w.-]*")
    tag: str = option("answer", "the JSON is in the last such tag, else in the last fence, else everything")


def score(sample: Sample, options: JsonSchemaOptions) -> Outcome:
    """1 if the JSON satisfies the schema, 0 if not; unparsable if it is none."""
    validator = validator_of(sample.metadata.get(options.schema, ""))
    if validator is None:
        return unsupported(f"metadata.{options.schema} is not a JSON schema")
    try:
        value = read_json(answer_part(sample.text, options.tag))
    except NotReadableError as error:
        return unparsable(str(error))
    try:
        wrong = first_error(validator, value)
    except LookupError as error:
        return unsupported(str(error))
    return judged(not wrong, wrong)


def first_error(validator: Any, value: Any) -> str:
    """Where and how the value breaks the schema; empty if it does not. Raises LookupError on a reference elsewhere."""
    from referencing.exceptions import Unresolvable

    try:
        wrong = next(validator.iter_errors(value), None)
    except Unresolvable:
        raise LookupError("the schema refers to something that is not in it") from None
    return "" if wrong is None else f"{wrong.json_path}: {wrong.message}"[:MAX_SHOWN]


@lru_cache(maxsize=256)
def validator_of(schema_text: str) -> Any | None:
    """A validator of the schema; None if it is no schema."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    try:
        schema = json.loads(schema_text)
        if not isinstance(schema, dict):
            return None
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
    except (ValueError, RecursionError, SchemaError):
        return None
    # A registry of our own: the default one fetches what a `$ref` names.
    return kind(schema, registry=Registry())


SCORER = Scorer(
    name="json_schema",
    source="JSON Schema 2020-12, by jsonschema; schema-valid rate as evaluations of tool use count it",
    low=0.0,
    high=1.0,
    options=JsonSchemaOptions,
    score=score,
    preload=("jsonschema", "referencing"),
)
