"""A job whose run cannot fit its pods is refused before anything is created, with what to change."""

import copy
from pathlib import Path
from typing import Any

import pytest

from crescendo.controller.operator.children import spec_problems
from crescendo.controller.operator.children.run_file import run_file
from crescendo.controller.operator.options import Options
from crescendo.controller.operator.quantity import quantity_bytes
from crescendo.controller.operator.render import to_rljob, to_run_file
from crescendo.controller.operator.resource import Job
from tests.unit.controller.rljob.test_render import job


def with_memory(amount: str) -> tuple[str, ...]:
    resources: dict[str, Any] = {"worker": {"cpu": "2", "memory": amount}}
    return spec_problems(job(resources=resources), Options())


def test_pods_with_too_little_memory_are_refused_with_what_to_change() -> None:
    assert with_memory("8Gi") == ()
    (problem,) = with_memory("2Gi")
    assert problem.startswith("spec.resources.worker.memory: stage ")
    assert "Take a machine with " in problem


GPUS: dict[str, Any] = {"mode": "Colocated", "nodes": 1, "devicesPerNode": 8}


def with_gpus(memory: str, hidden: int = 8192) -> Job:
    run = copy.deepcopy(job().spec["run"])
    run["model"]["scratch"] |= {"hiddenSize": hidden, "numLayers": 32, "ffnSize": 4 * hidden}
    placement = {**GPUS, "deviceMemory": memory} if memory else GPUS
    return job(run=run, placement=placement, resources={"worker": {"cpu": "8", "memory": "2Ti"}})


def test_a_model_too_large_for_the_gpus_is_refused_where_their_memory_is_named() -> None:
    assert spec_problems(with_gpus(""), Options()) == ()
    assert spec_problems(with_gpus("80Gi", hidden=256), Options()) == ()
    (problem,) = spec_problems(with_gpus("80Gi"), Options())
    assert problem.startswith("spec.placement.deviceMemory, spec.resources.worker.memory: stage ")
    assert "then it fits" in problem or "Take " in problem


def test_the_run_is_told_what_a_gpu_holds_and_comes_back_with_it() -> None:
    one = with_gpus("80Gi", hidden=256)
    assert run_file(one, Options())["placement"]["deviceMemoryGib"] == 80.0
    run = {
        **one.spec["run"],
        "run": {"name": "math"},
        "placement": {"device": "gpu", "num_devices": 8, "device_memory_gib": 80.0},
    }
    rendered = to_rljob(run, image="any")
    assert rendered["spec"]["placement"]["deviceMemory"] == "80Gi"
    assert to_run_file(rendered)["placement"]["device_memory_gib"] == 80.0


def test_a_folder_that_the_run_names_is_not_looked_for_on_the_operators_disk(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("not JSON")
    run = {**job().spec["run"], "model": {"source": str(tmp_path)}}
    assert spec_problems(job(run=run), Options()) == ()


@pytest.mark.parametrize(
    ("text", "expected"), [("2Gi", 2 << 30), ("1.5G", 1_500_000_000), ("1024", 1024), ("3Zi", None), ("much", None)]
)
def test_kubernetes_quantities(text: str, expected: int | None) -> None:
    assert quantity_bytes(text) == expected
