"""Ray's nodes against a layout: what is still to come, and what is still to go."""

from typing import Any

import pytest

from crescendo.common.config.layouts import layout_of
from crescendo.common.config.rl import StageConfig, StageLayoutConfig
from crescendo.common.config.schema import Config, PlacementConfig, RolloutConfig, TrainerConfig
from crescendo.controller.launch import cluster
from crescendo.controller.launch.nodes import missing, sizes, surplus

HEAD = {"CPU": 0.0}
WORKER = {"CPU": 16.0, "GPU": 8.0, "crescendo-worker": 1000.0}
ROLLOUT = {"CPU": 16.0, "GPU": 8.0, "crescendo-rollout": 1000.0}


def config(devices: int, apart: int = 0) -> Config:
    name = "disaggregated" if apart else "colocated"
    return Config(
        placement=PlacementConfig(name=name, num_devices=devices, rollout_devices=apart),
        trainer=TrainerConfig(data_parallel=devices - apart),
        rollout=RolloutConfig(num_engines=apart or devices),
    )


def test_a_cluster_that_nobody_sizes_is_not_waited_for() -> None:
    assert sizes([HEAD, {"CPU": 4.0}], layout_of(config(32)), on_gpus=True) == []


def test_pods_still_to_come_are_named() -> None:
    found = sizes([HEAD, WORKER], layout_of(config(32)), on_gpus=True)
    assert missing(found) == "3 of 4 crescendo-worker pods"
    assert surplus(found) == ""
    assert missing(sizes([HEAD, *[WORKER] * 4], layout_of(config(32)), on_gpus=True)) == ""


def test_pods_still_to_go_are_named() -> None:
    layout = layout_of(config(32), StageConfig(layout=StageLayoutConfig(devices=8)))
    assert surplus(sizes([HEAD, *[WORKER] * 4], layout, on_gpus=True)) == "3 crescendo-worker pods"


def test_both_groups_count_when_engines_are_apart() -> None:
    found = sizes([HEAD, WORKER, ROLLOUT], layout_of(config(32, apart=16)), on_gpus=True)
    assert missing(found) == "1 of 2 crescendo-worker pods, 1 of 2 crescendo-rollout pods"


def test_on_cores_a_pod_is_a_device() -> None:
    found = sizes([HEAD, {"CPU": 16.0, "crescendo-worker": 1000.0}], layout_of(config(2)), on_gpus=False)
    assert missing(found) == "1 of 2 crescendo-worker pods"


@pytest.mark.parametrize("gone_after", [1, 1000])
async def test_pods_that_are_about_to_go_are_waited_for_at_the_start_too_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gone_after: int
) -> None:
    looks = []

    def ray_nodes() -> list[dict[str, Any]]:
        looks.append(len(looks))
        pods = [HEAD, *[WORKER] * (4 if len(looks) <= gone_after else 1)]
        return [{"Alive": True, "Resources": one} for one in pods]

    monkeypatch.setattr(cluster.ray, "nodes", ray_nodes)
    monkeypatch.setattr(cluster.ray, "cluster_resources", dict)
    monkeypatch.setattr(cluster, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(cluster, "SURPLUS_S", 0.2)
    await cluster.Cluster(uses_gpu=False).reserve(layout_of(config(1)), 60.0, grows=True)
    assert len(looks) > 1
    assert ("3 crescendo-worker pods have not gone" in caplog.text) == (gone_after == 1000)
