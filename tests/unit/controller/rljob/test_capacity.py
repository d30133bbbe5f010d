"""A job whose run cannot fit its pods is refused before anything is created, with what to change."""

from typing import Any

import pytest

from crescendo.controller.operator.children import spec_problems
from crescendo.controller.operator.children.capacity import quantity_bytes
from crescendo.controller.operator.options import Options
from tests.unit.controller.rljob.test_render import job


def with_memory(amount: str) -> tuple[str, ...]:
    resources: dict[str, Any] = {"worker": {"cpu": "2", "memory": amount}}
    return spec_problems(job(resources=resources), Options())


def test_pods_with_too_little_memory_are_refused_with_what_to_change() -> None:
    assert with_memory("8Gi") == ()
    (problem,) = with_memory("2Gi")
    assert problem.startswith("spec.resources.worker.memory: stage ")
    assert "Take a machine with " in problem


@pytest.mark.parametrize(
    ("text", "expected"), [("2Gi", 2 << 30), ("1.5G", 1_500_000_000), ("1024", 1024), ("3Zi", None), ("much", None)]
)
def test_kubernetes_quantities(text: str, expected: int | None) -> None:
    assert quantity_bytes(text) == expected
