"""Where the workers of a tensor-parallel engine live: told by the controller, passed on to vLLM."""

import json
import os
from pathlib import Path

import pytest

from crescendo.common.config import Config
from crescendo.common.service import ServiceSpec
from crescendo.controller.launch.cluster import ENGINE_SHARE, TRAINER_SHARE, Cluster
from crescendo.rollout.engine.settings import EngineSettings
from crescendo.rollout.engine.vllm_engine import _executor
from crescendo.rollout.engine.vllm_environment import prepare_environment

VARIABLES = ("VLLM_RAY_BUNDLE_INDICES", "VLLM_RAY_PER_WORKER_GPUS")


def settings(folder: Path, **options: str) -> EngineSettings:
    (folder / "config.json").write_text(json.dumps({"vocab_size": 8, "eos_token_id": 1}))
    spec = ServiceSpec("rollout", "rollout-1", "", "run", "", model_path=str(folder), options=options)
    return EngineSettings.of(spec, Config())


@pytest.mark.parametrize(
    ("options", "executor", "bundles"),
    [
        ({}, None, ()),
        ({"tensor_parallel": "2"}, "mp", ()),
        ({"tensor_parallel": "2", "bundles": "2,3", "device_share": "0.4"}, "ray", (2, 3)),
    ],
    ids=["alone", "children", "bundles"],
)
def test_workers_are_children_or_live_in_bundles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], executor: str | None, bundles: tuple[int]
) -> None:
    made = settings(tmp_path, **options)
    assert (made.bundles, _executor(made)) == (bundles, executor)
    monkeypatch.setattr(os, "environ", {"VLLM_RAY_BUNDLE_INDICES": "0,1"} if bundles else {})
    prepare_environment(made)
    found = [os.environ.get(name) for name in VARIABLES]
    assert found == (["2,3", "0.4"] if bundles else [None, None])


def test_two_engines_are_told_different_bundles_and_shares_leave_room_for_the_trainer() -> None:
    cluster = Cluster(uses_gpu=True)
    assert cluster.spanned(0, 2) == {}  # nothing is reserved, so vLLM starts children
    cluster._group = object()
    assert cluster.spanned(0, 1) == {}
    told = [cluster.spanned(first, 2) for first in (0, 2)]
    assert [each["bundles"] for each in told] == ["0,1", "2,3"]
    assert float(told[0]["device_share"]) == ENGINE_SHARE
    assert TRAINER_SHARE + ENGINE_SHARE <= 1
