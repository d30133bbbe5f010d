"""A vLLM engine with tensor parallelism 2, its workers in two bundles of the run's placement group.

Everything is real but the GPUs, which Ray only counts: our cluster places the engine's actor, vLLM its workers beside
trainer ranks that have their share of each device, and every worker loads its slices of what the trainer published.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import ray
from safetensors.numpy import save_file

from crescendo.buffer import EmbeddedServer, connect
from crescendo.common.config.layouts import layout_of
from crescendo.common.config.load import save_resolved
from crescendo.common.models.scratch import write_scratch_model
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.runfolder import RunFolder
from crescendo.common.service import ServiceSpec
from crescendo.controller.launch.cluster import ENGINE_SHARE, TRAINER_SHARE, Cluster
from crescendo.proto.v1 import common_pb2, rollout_pb2, rollout_pb2_grpc
from tests.contract.engine_cases import (
    PROMPT,
    RolloutDriver,
    publish,
    read_weights,
    request,
    run_config,
    scratch_shape,
)
from tests.integration.ray_pods import environment
from tests.integration.vllm_on_ray import installed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4
START_S = 240.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RolloutDriver]:
    root = tmp_path_factory.mktemp("tp")
    config = run_config("vllm")
    config.model.scratch = replace(scratch_shape(), num_heads=4, num_kv_heads=2)
    config.placement.num_devices, config.rollout.tensor_parallel, config.rollout.threads = 2, 2, 1
    folder = RunFolder.create(root / "run", "test")
    save_resolved(config, folder.config)
    write_scratch_model(root / "model", config.model.scratch, 0)
    server = EmbeddedServer(root / "valkey")
    paths = os.pathsep.join([str(installed(root / "plugin")), str(ROOT)])
    with environment(PYTHONPATH=paths, GOMP_SPINCOUNT="0", RAY_worker_niceness="0"):
        ray.init(num_cpus=6, num_gpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    cluster = Cluster(uses_gpu=True)
    layout = layout_of(config)
    await cluster.reserve(layout, START_S)
    ranks = [ServiceSpec("trainer", f"trainer-{i}", str(folder.root), folder.run_id(), "secret") for i in (0, 1)]
    neighbours = [await cluster.place(rank, bundle=index) for index, rank in enumerate(ranks)]
    spec = ServiceSpec(
        "rollout", "rollout-0", str(folder.root), folder.run_id(), "secret", buffer_url=server.start(),
        model_path=str(root / "model"), threads=1,
        options={"dummy": "1", "tensor_parallel": "2", **cluster.spanned(layout.first_device("rollout", 0), 2)},
    )  # fmt: skip
    handle = await cluster.start(spec, bundle=0, deadline_s=START_S)
    client = Client(Endpoint(handle.address, "secret"), rollout_pb2_grpc.RolloutServiceStub)
    buffer = await connect(spec.buffer_url, spec.run_id)
    yield RolloutDriver(client, buffer, await buffer.acquire_epoch(), root / "model")
    await client.close()
    await buffer.close()
    del neighbours
    await cluster.stop(handle, 5.0)
    await cluster.shutdown()
    server.stop()


def expected(folder: Path, seed: int, tokens: list[int]) -> list[float]:
    """Log-probabilities under transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    own = folder / f"seed{seed}"
    own.mkdir(exist_ok=True)
    (own / "config.json").write_text((folder / "config.json").read_text())
    save_file(read_weights(folder, seed), own / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(own, config=AutoConfig.from_pretrained(folder), dtype=torch.float32)
    with torch.no_grad():
        table = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert [int(row.argmax()) for row in table[len(PROMPT) - 1 : -1]] == tokens[len(PROMPT) :], "not greedy"
    return [float(table[place, token]) for place, token in enumerate(tokens[1:])]


def free_shares() -> list[float]:
    """What Ray counts as free of each bundle's GPU; names are GPU_group_BUNDLE_ID."""
    left = ray.available_resources()
    return [left[name] for name in sorted(left) if name.startswith("GPU_group_") and name.count("_") == 3]


async def test_workers_live_in_their_bundles_beside_trainer_ranks(driver: RolloutDriver) -> None:
    assert free_shares() == pytest.approx([1 - TRAINER_SHARE - ENGINE_SHARE] * 2)


async def test_every_worker_serves_its_slices_of_each_version(driver: RolloutDriver) -> None:
    for version, seed in enumerate((1, 2), start=1):
        path = driver.folder / f"v{version}"
        manifest = publish(read_weights(driver.folder, seed), path, version)
        manifest.canaries.append(common_pb2.Canary(token_ids=PROMPT * 5))
        attestation = await driver.update(manifest)
        assert attestation.digest == manifest.digest
        await driver.admit(version)
        made = (await driver.generate(request("greedy", 40)))["greedy"]
        wanted = expected(driver.folder, seed, [*PROMPT, *made.token_ids])
        assert made.log_probs == pytest.approx(wanted[len(PROMPT) - 1 :], abs=TOLERANCE)
        [scores] = await driver.score([*PROMPT, *made.token_ids])
        assert np.abs(np.asarray(scores) - np.asarray(wanted)).max() < TOLERANCE


async def test_workers_go_with_the_engine(driver: RolloutDriver) -> None:
    release = rollout_pb2.RolloutReleaseDeviceRequest(fence=driver.fence, method="restart")
    await driver.client.call(driver.client.stub.ReleaseDevice, release, timeout_s=60)
    deadline = time.monotonic() + 30
    while (left := free_shares()) != pytest.approx([1 - TRAINER_SHARE] * 2):
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.2)
