"""The service over the scripted engine, in this process: what the contract suite does not reach."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crescendo.buffer import MemoryBuffer
from crescendo.common.config.schema import Config
from crescendo.common.errors import ConfigError, DataError, RequestError, WorkerLostError, WorkerStartError
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.service import ServiceSpec
from crescendo.proto.v1 import common_pb2, rollout_pb2, rollout_pb2_grpc
from crescendo.rollout.engine import EngineSettings, EngineThread, make_engine
from crescendo.rollout.engine.base import Engine
from crescendo.rollout.service import SERVICE_NAME, RolloutServer, start_with

Stub = Client[rollout_pb2_grpc.RolloutServiceStub]
Serve = Callable[..., Awaitable[tuple[Stub, RolloutServer]]]
FENCE = common_pb2.Fence(epoch=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    description = {"vocab_size": 43, "max_position_embeddings": 64, "eos_token_id": 42}
    (tmp_path / "config.json").write_text(json.dumps(description))
    return tmp_path


@pytest.fixture
async def serve(model: Path) -> AsyncIterator[Serve]:
    started: list[tuple[Stub, RolloutServer]] = []

    async def start(**options: str) -> tuple[Stub, RolloutServer]:
        config = Config()
        config.rollout.engine = "scripted"
        named = {f"scripted.{name}": value for name, value in options.items()}
        spec = ServiceSpec("rollout", "r0", "", "run", "token", model_path=str(model), options=named)
        server = await start_with(spec, config, MemoryBuffer())
        client = Client(Endpoint(server.address, "token"), rollout_pb2_grpc.RolloutServiceStub)
        started.append((client, server))
        return client, server

    yield start
    for client, server in started:
        await client.close()
        await server.stop(0.2)


async def load(client: Stub, folder: Path, version: int = 1) -> common_pb2.Attestation:
    path = folder / f"shard-{version}"
    path.write_bytes(bytes(64))
    manifest = common_pb2.WeightManifest(
        version=version,
        channel="shm",
        shards=[common_pb2.WeightShard(address=str(path), num_bytes=64)],
        tensors=[common_pb2.TensorSpec(name="a", dtype="float32", shape=[16], num_bytes=64)],
        canaries=[common_pb2.Canary(token_ids=[1, 2, 3], log_probs=[-0.5, -0.25])],
    )
    update = rollout_pb2.UpdateWeightsRequest(fence=FENCE, manifest=manifest)
    answer = await client.call(client.stub.UpdateWeights, update, timeout_s=10)
    await client.call(client.stub.Admit, rollout_pb2.AdmitRequest(fence=FENCE, version=version), timeout_s=10)
    return answer.attestation  # type: ignore[no-any-return]


async def generate(client: Stub, max_tokens: int) -> list[rollout_pb2.GenerateDelta]:
    async def send() -> AsyncIterator[rollout_pb2.GenerateRequest]:
        sampling = common_pb2.Sampling(temperature=1.0)
        yield rollout_pb2.GenerateRequest(
            request_id="a", prompt_token_ids=[1, 2], max_tokens=max_tokens, sampling=sampling, ignore_eos=True
        )

    answers = client.stream(client.stub.Generate, send(), timeout_s=10)
    return [delta async for message in answers for delta in message.deltas]


async def health(server: RolloutServer) -> int:
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int((await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME))).status)


async def test_dead_engine_is_a_typed_error_and_not_serving(serve: Serve, model: Path) -> None:
    client, server = await serve(die_at_step="5")
    await load(client, model)
    assert await health(server) == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(WorkerLostError, match="die_at_step"):
        await generate(client, 30)
    assert await health(server) == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(WorkerLostError, match="die_at_step"):
        await generate(client, 30)
    status = await client.call(client.stub.GetStatus, rollout_pb2.GetRolloutStatusRequest(), timeout_s=10)
    assert status.worker.state == "failed"


async def test_canaries_come_back_as_the_engine_computes_them(serve: Serve, model: Path) -> None:
    client, _ = await serve()
    assert list((await load(client, model)).canaries[0].log_probs) == [-0.5, -0.25]
    wrong, _ = await serve(canary_error="0.5")
    assert list((await load(wrong, model)).canaries[0].log_probs) == [0.0, 0.25]


async def test_weight_update_ends_generation_outside_the_ledger(serve: Serve, model: Path) -> None:
    client, _ = await serve(step_s="0.01")
    await load(client, model)
    running = asyncio.create_task(generate(client, 60))
    await asyncio.sleep(0.1)
    await load(client, model, version=2)
    deltas = await running
    assert deltas[-1].finish_reason == common_pb2.FINISH_REASON_ABORTED
    assert 0 < sum(len(one.token_ids) for one in deltas) < 60


@pytest.mark.parametrize("name", ["max_response_tokens", "max_concurrency", "lease_seconds"])
async def test_begin_without_limits_is_refused(serve: Serve, model: Path, name: str) -> None:
    client, _ = await serve()
    await load(client, model)
    request = rollout_pb2.BeginRequest(
        fence=FENCE, weight_version=1, max_response_tokens=8, max_concurrency=8, lease_seconds=8
    )
    request.ClearField(name)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=name):
        await client.call(client.stub.Begin, request, timeout_s=10)


async def test_no_weight_update_and_no_release_during_a_phase(serve: Serve, model: Path) -> None:
    client, _ = await serve()
    fence = common_pb2.Fence(epoch=1)
    await load(client, model)
    begin = rollout_pb2.BeginRequest(
        fence=fence, weight_version=1, max_response_tokens=8, max_concurrency=8, lease_seconds=8, idempotency_key="k"
    )
    await client.call(client.stub.Begin, begin, timeout_s=10)
    await client.call(client.stub.Begin, begin, timeout_s=10)  # joins
    with pytest.raises(RequestError, match="phase runs"):
        await load(client, model, version=2)
    release = rollout_pb2.RolloutReleaseDeviceRequest(fence=fence, method="idle")
    with pytest.raises(RequestError, match="phase runs"):
        await client.call(client.stub.ReleaseDevice, release, timeout_s=10)


async def test_sleep_is_refused_on_a_cpu(serve: Serve, model: Path) -> None:
    client, _ = await serve()
    with pytest.raises(RequestError, match="idle or restart"):
        await client.call(
            client.stub.ReleaseDevice,
            rollout_pb2.RolloutReleaseDeviceRequest(fence=FENCE, method="sleep"),
            timeout_s=10,
        )


async def test_restart_loses_the_weights(serve: Serve, model: Path) -> None:
    client, _ = await serve()
    await load(client, model)
    release = rollout_pb2.RolloutReleaseDeviceRequest(fence=FENCE, method="restart")
    await client.call(client.stub.ReleaseDevice, release, timeout_s=10)
    await load(client, model, version=2)  # takes the device back by itself
    assert len(await generate(client, 5)) == 5


@pytest.mark.parametrize("num_tokens", [0, 1, 64])
async def test_sequences_that_cannot_be_scored_are_refused(serve: Serve, num_tokens: int) -> None:
    client, _ = await serve()
    request = rollout_pb2.ScoreTokensRequest(sequences=[rollout_pb2.TokenSequence(token_ids=[1] * num_tokens)])
    with pytest.raises(RequestError, match="sequence to score"):
        await client.call(client.stub.ScoreTokens, request, timeout_s=10)


async def test_engine_that_does_not_start_is_a_start_error() -> None:
    def fail() -> Engine:
        raise OSError("no memory")

    with pytest.raises(WorkerStartError, match="no memory"):
        await EngineThread(fail).start(5)


def test_unknown_engines_and_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    settings = EngineSettings(model_path="", max_sequence_tokens=8, vocabulary_size=4, eos_token_ids=())
    with pytest.raises(ConfigError, match="vllm, reference, scripted"):
        make_engine("sglang", settings)
    with pytest.raises(DataError, match=r"config\.json"):
        EngineSettings.of(ServiceSpec("rollout", "r", "", "run", "", model_path=str(tmp_path)), Config())


@pytest.mark.parametrize("text", ["", "fixed", "fixed:0", "uniform:9:3", "normal:3"])
def test_scripted_lengths_that_make_no_sense_are_refused(text: str) -> None:
    settings = EngineSettings(
        model_path="", max_sequence_tokens=8, vocabulary_size=4, eos_token_ids=(), options={"scripted.lengths": text}
    )
    with pytest.raises(ConfigError, match=r"scripted\.lengths"):
        make_engine("scripted", settings)
