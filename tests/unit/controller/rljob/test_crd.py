"""The RLJob definition: a structural schema that knows every field of the run file."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from crescendo.common.config.openapi import schema_of
from crescendo.common.config.schema import Config
from crescendo.common.config.tree import camel_case, conform
from crescendo.controller.operator.crd import OPERATOR_SETS, definition, render

ROOT = Path(__file__).parents[4]


def spec_schema() -> dict[str, Any]:
    (version,) = definition()["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for child in schema.get("properties", {}).values():
        yield from schemas(child)
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from schemas(schema[name])


def test_kubernetes_own_schema_takes_it() -> None:
    kubernetes_validate.validate(yaml.safe_load(render()), "1.36", strict=True)


def test_every_field_of_the_run_file_is_there_but_those_the_operator_sets() -> None:
    run = spec_schema()["properties"]["run"]["properties"]
    known = {camel_case(field.name) for field in dataclasses.fields(Config)}
    assert set(run) == known - {"buffer", "checkpointStore", "placement", "console"}
    assert set(run["run"]["properties"]) == {"seed", "deterministic"}


def test_every_field_is_explained_and_bounded() -> None:
    for schema in schemas(spec_schema()["properties"]["run"]):
        for name, child in schema.get("properties", {}).items():
            assert child.get("description"), name
            if child["type"] == "array":
                assert "maxItems" in child, name
            if child["type"] == "string":
                assert "maxLength" in child, name


def test_what_only_kubernetes_knows_is_explained_too() -> None:
    (version,) = definition()["spec"]["versions"]
    whole = version["schema"]["openAPIV3Schema"]
    for schema in [*schemas(whole["properties"]["spec"]), *schemas(whole["properties"]["status"])]:
        for name, child in schema.get("properties", {}).items():
            assert child.get("description"), name


def test_explaining_the_stages_teaches() -> None:
    steps = spec_schema()["properties"]["run"]["properties"]["steps"]
    stage = steps["items"]["properties"]["rl"]["properties"]["stages"]["items"]
    limit = stage["properties"]["maxResponseTokens"]
    assert "limit on a whole response" in limit["description"].lower()
    assert "Unit: tokens." in limit["description"]
    assert (limit["minimum"], limit["default"]) == (1, 8192)
    # Fields are spelt as kubectl has them, values as they are written.
    assert "onMaxIterations" in stage["properties"]["maxIterations"]["description"]
    curriculum = steps["items"]["properties"]["rl"]["properties"]["curriculum"]["properties"]
    assert curriculum["startFraction"]["description"].startswith("easy_to_hard: ")
    budget = stage["properties"]["tokenBudget"]["description"]
    assert "k1.5" in budget


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("recipes/*/recipe.yaml")), ids=lambda path: path.parent.name)
def test_every_recipe_fits_spec_run(recipe: Path) -> None:
    run = wire(conform(yaml.safe_load(recipe.read_text()), Config, "", []))
    for name in ("buffer", "placement", "console"):
        run.pop(name, None)
    for name in ("name", "folder"):
        run.get("run", {}).pop(name, None)
    schema = strict(schema_of(Config, leave_out=OPERATOR_SETS))
    jsonschema.validate(run, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**run, "typo": 1}, schema)


def wire(value: Any, *, keys_are_fields: bool = True) -> Any:
    """A conformed tree with camelCase keys; maps of people's own names keep theirs."""
    if isinstance(value, list):
        return [wire(item) for item in value]
    if not isinstance(value, dict):
        return value
    own_names = {"chains", "options", "columns", "reward_weights"}
    return {
        camel_case(key) if keys_are_fields else key: wire(item, keys_are_fields=key not in own_names)
        for key, item in value.items()
    }


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's exclusiveMinimum is JSON Schema draft 4's; unknown keys are refused as the API server does."""
    schema = dict(schema)
    if schema.pop("exclusiveMinimum", False):
        schema["exclusiveMinimum"] = schema.pop("minimum")
    if "properties" in schema:
        schema["properties"] = {name: strict(child) for name, child in schema["properties"].items()}
        schema["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        schema["items"] = strict(schema["items"])
    return schema
