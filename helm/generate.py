#!/usr/bin/env python3
"""Writes the chart's values.schema.json and README.md from values.yaml: `python helm/generate.py [--check]`.

Every key of values.yaml becomes a property with its type; unknown keys are refused. A comment that starts with `# --`
above a key is its description. What values.yaml cannot say (patterns, open maps, list items) stands in RULES.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from crescendo.common.generated import write_or_check

CHART: Final = Path(__file__).parent / "crescendo"
_COMMENT: Final = re.compile(r"\s*# -- (.+)")
_KEY: Final = re.compile(r"(\s*)([A-Za-z]+):")
_QUANTITY: Final = {"type": ["string", "number"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|Mi|Gi|Ti)?$"}
_AMOUNTS: Final = {"type": "object", "additionalProperties": _QUANTITY}
_OPEN: Final = {"type": "object"}
_LABELS: Final = {"type": "object", "additionalProperties": {"type": "string"}}
_PORT: Final = {"type": "integer", "minimum": 1, "maximum": 65535}
_TEXTS: Final = {"type": "array", "items": {"type": "string"}}
# By path, where * is any one key.
RULES: Final[dict[str, dict[str, Any]]] = {
    "global.imageRegistry": {"type": "string", "pattern": r"^([A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9._/-]*)?)?$"},
    "global.imagePullSecrets": _TEXTS,
    "global.labels": _LABELS,
    "*.nodeSelector": _LABELS,
    "*.affinity": _OPEN,
    "*.tolerations": {"type": "array", "items": _OPEN},
    "*.resources": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"requests": _AMOUNTS, "limits": _AMOUNTS},
    },
    "*.image.repository": {"type": "string", "minLength": 1},
    "*.image.digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "*.image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "*.replicas": {"type": "integer", "minimum": 1},
    "*.autoscaling.minReplicas": {"type": "integer", "minimum": 1},
    "*.autoscaling.maxReplicas": {"type": "integer", "minimum": 1},
    "*.autoscaling.targetCPUUtilization": {"type": "integer", "minimum": 1, "maximum": 100},
    "*.drainSeconds": {"type": "integer", "minimum": 1, "maximum": 3600},
    "operator.resyncSeconds": {"type": "integer", "minimum": 1},
    "operator.trustDays": {"type": "integer", "minimum": 1, "maximum": 365},
    "console.service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "console.service.port": _PORT,
    "reward.models": _OPEN,
    "executor.workers": {"type": "integer", "minimum": 1},
    "executor.sandboxFloor.boundary": {"enum": ["", "shared-kernel", "gvisor", "kata"]},
    "executor.sandboxFloor.jail": {"enum": ["", "landlock", "namespaces", "runsc"]},
    "kuberayOperator": {"type": "object", "properties": {"enabled": {"type": "boolean"}}},
    "valkey.maxMemory": {"type": "string", "pattern": "^[0-9]+(kb|mb|gb)$"},
    "valkey.storage.size": _QUANTITY,
    "valkey.externalUrl": {"type": "string", "pattern": "^(rediss?://.+)?$"},
    "monitoring.*.labels": _LABELS,
    "networkPolicy.apiServerPorts": {"type": "array", "items": _PORT, "minItems": 1, "uniqueItems": True},
}


def descriptions(text: str) -> dict[str, str]:
    """`# --` comments by the dotted path of the key below them."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    pending = ""
    for line in text.splitlines():
        comment, key = _COMMENT.match(line), _KEY.match(line)
        if comment:
            pending = comment.group(1)
        elif key:
            indent = len(key.group(1))
            path = [entry for entry in path if entry[0] < indent] + [(indent, key.group(2))]
            if pending:
                found[".".join(name for _, name in path)] = pending
            pending = ""
    return found


def schema_of(value: Any, path: str, docs: dict[str, str]) -> dict[str, Any]:
    """The schema of a value at a path."""
    rule = next((rule for pattern, rule in RULES.items() if _matches(pattern, path)), None)
    schema = dict(rule) if rule is not None else _inferred(value, path, docs)
    if path in docs:
        schema = {"description": docs[path], **schema}
    return schema


def _inferred(value: Any, path: str, docs: dict[str, str]) -> dict[str, Any]:
    if isinstance(value, dict):
        properties = {name: schema_of(child, f"{path}.{name}".lstrip("."), docs) for name, child in value.items()}
        return {"type": "object", "additionalProperties": False, "properties": properties}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": kinds[type(value)]}


def _matches(pattern: str, path: str) -> bool:
    ours, theirs = pattern.split("."), path.split(".")
    return len(ours) == len(theirs) and all(one in ("*", other) for one, other in zip(ours, theirs, strict=True))


def render_schema(text: str) -> str:
    """values.schema.json."""
    values = yaml.safe_load(text)
    schema = schema_of(values, "", descriptions(text))
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Generated by `make chart` from values.yaml.",
        "title": "Values of the Crescendo chart",
    }
    return json.dumps({**head, **schema}, indent=2) + "\n"


def render_readme(text: str) -> str:
    """README.md: every value with its default and meaning."""
    docs, values = descriptions(text), yaml.safe_load(text)
    rows = [f"| `{path}` | `{json.dumps(value)}` | {docs.get(path, '')} |" for path, value in _leaves(values, "")]
    return "\n".join(
        [
            "# The Crescendo chart",
            "",
            "<!-- Generated by `make chart` from values.yaml. -->",
            "",
            "Operator, console, reward service and, if wanted, a shared buffer.",
            "[operations.md](../../docs/operations.md) says how to install, upgrade and operate it.",
            "",
            "| value | default | meaning |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _leaves(values: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(values, dict) and values:
        return [leaf for name, child in values.items() for leaf in _leaves(child, f"{path}.{name}".lstrip("."))]
    return [(path, values)]


def main() -> int:
    """Writes both files; with --check exits 1 when one is stale."""
    parser = argparse.ArgumentParser(description="Write the chart's values schema and README from values.yaml.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a file is stale")
    options = parser.parse_args()
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    files = {CHART / "values.schema.json": render_schema(text), CHART / "README.md": render_readme(text)}
    return write_or_check(files, check=options.check, command="make chart")


if __name__ == "__main__":
    sys.exit(main())
