"""Actors on devices that Ray only believes in: who shares one with whom."""

import functools
import tempfile
from pathlib import Path

import pytest
import ray

from crescendo.common.config.layouts import layout_of
from crescendo.common.config.schema import Config
from crescendo.common.service import ServiceSpec
from crescendo.controller.launch.cluster import Cluster

DEADLINE_S = 60.0


async def test_a_rank_and_an_engine_share_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", functools.partial(ray.init, num_gpus=1))
    cluster = Cluster(uses_gpu=True)
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch:
        await cluster.connect(Path(scratch), DEADLINE_S)
        try:
            await cluster.reserve(layout_of(Config()), DEADLINE_S)
            for role in ("trainer", "rollout"):
                actor = await cluster.place(ServiceSpec(role, f"{role}-0", "", "", ""), bundle=0)
                host, _, port = (await cluster.rendezvous(actor, DEADLINE_S)).partition(":")
                assert (host, 0 < int(port) < 2**16) == ("127.0.0.1", True)
        finally:
            await cluster.shutdown()
