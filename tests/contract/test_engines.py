"""One suite over every engine, through the rollout service: gRPC, a real Valkey, and vLLM in its own process.

The vLLM engine starts once for the module; it costs about twenty seconds.
"""

import asyncio
import collections
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import torch

from crescendo.common.errors import DeadlineError, RequestError, StaleFenceError, WeightMismatchError
from crescendo.common.types import GroupState, TrajectoryState
from crescendo.common.weights import manifest_digest
from crescendo.proto.v1 import common_pb2, rollout_pb2
from crescendo.trainer.channels.ipc import IpcChannel
from crescendo.trainer.megatron.weights import Exported
from tests.contract.engine_cases import (
    PROMPT,
    RolloutDriver,
    begin_request,
    publish,
    read_weights,
    request,
    served,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["scripted", "reference", "vllm"])
async def driver(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RolloutDriver]:
    """Each engine, served, with weights admitted."""
    options = {"scripted.lengths": "uniform:8:90", "scripted.step_s": "0.002", "scripted.repeat_share": "0.3"}
    async with served(request.param, tmp_path_factory.mktemp(request.param), options) as made:
        await made.serve(seed=1)
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def clean(driver: RolloutDriver) -> AsyncIterator[None]:
    """No phase runs between tests, and no work is left for the next."""
    yield
    await driver.pause()
    for group in await driver.buffer.groups(GroupState.OPEN):
        await driver.buffer.drop_group(driver.fence, group, "test_over")


async def test_continuation_equals_an_uninterrupted_response(driver: RolloutDriver) -> None:
    [identity] = await driver.open_group(1, iteration=100)
    greedy = common_pb2.Sampling(temperature=0.0, top_p=1.0)
    for iteration in (100, 101, 102, 103, 104, 105):
        await driver.roll_out(iteration, sampling=greedy, token_budget=13, max_response_tokens=60)
    [parts] = await driver.trajectories([identity])
    whole = (await driver.generate(request("whole", 60, ignore_eos=False)))["whole"]
    assert parts.token_ids.tolist() == whole.token_ids
    assert parts.log_probs.tolist() == pytest.approx(whole.log_probs, abs=1e-4)
    made = collections.Counter[int]()
    for one in parts.segments:
        made[one.iteration] += len(one.token_ids)
    assert list(made.values())[:-1] == [13] * (len(made) - 1)
    assert len(made) > 1
    assert parts.finish_reason == whole.finish_reason


async def test_budget_parks_limit_finishes_and_every_token_is_counted_once(driver: RolloutDriver) -> None:
    ids = await driver.open_group(12, iteration=110)
    first = await driver.roll_out(110, token_budget=16, max_response_tokens=24, flush_tokens=5)
    parked = [one for one in await driver.trajectories(ids) if one.state == TrajectoryState.PARKED]
    assert parked
    assert {one.num_tokens for one in parked} == {16}
    assert (first.num_parked, first.num_finished) == (len(parked), 12 - len(parked))
    second = await driver.roll_out(111, token_budget=16, max_response_tokens=24)
    ended = await driver.trajectories(ids)
    assert {one.state for one in ended} == {TrajectoryState.FINISHED}
    assert first.num_tokens + second.num_tokens == sum(one.num_tokens for one in ended)
    for one in ended:
        at_limit = one.finish_reason == common_pb2.FINISH_REASON_LENGTH
        assert one.num_tokens == 24 if at_limit else one.finish_reason == common_pb2.FINISH_REASON_STOP
        assert all(segment.weight_version == driver.version for segment in one.segments)


async def test_pause_parks_running_work_and_loses_no_token(driver: RolloutDriver) -> None:
    ids = await driver.open_group(8, iteration=120)
    await driver.begin(120, max_response_tokens=200, flush_tokens=0, flush_seconds=60.0)
    await driver.until(lambda status: status.progress.num_tokens >= 40)
    progress = await driver.pause()
    found = await driver.trajectories(ids)
    assert progress.num_running == 0
    assert sum(one.num_tokens for one in found) == progress.num_tokens
    assert {one.state for one in found} <= {TrajectoryState.PARKED, TrajectoryState.FINISHED}
    assert progress == await driver.pause(), "a repeated Pause answers the same"


async def test_more_work_than_slots_is_refilled_as_slots_free(driver: RolloutDriver) -> None:
    ids = await driver.open_group(20, iteration=130)
    await driver.begin(130, max_concurrency=3, max_response_tokens=30)
    running = []
    while not (progress := (await driver.status()).progress).drained:
        running.append(progress.num_running)
        await asyncio.sleep(0.01)
    assert max(running) <= 3
    late = await driver.open_group(2, iteration=130)
    await driver.until(lambda status: status.progress.num_finished == 22)
    await driver.drained()
    assert {one.state for one in await driver.trajectories([*ids, *late])} == {TrajectoryState.FINISHED}


async def test_repetition_ends_a_response_and_frees_its_slot(driver: RolloutDriver) -> None:
    rule = common_pb2.RepetitionRule(ngram_tokens=40, window_tokens=120, count=3)
    ids = await driver.open_group(8, iteration=140)
    # Nearly greedy decoding of a random model soon goes round in circles.
    cold = common_pb2.Sampling(temperature=0.02, top_p=1.0)
    progress = await driver.roll_out(140, repetition=rule, sampling=cold, max_response_tokens=190)
    found = await driver.trajectories(ids)
    looping = [one for one in found if one.finish_reason == common_pb2.FINISH_REASON_REPEAT]
    assert looping
    assert progress.num_repeats == len(looping)
    for one in found:
        ends = any(one.token_ids[-3 * n :].tolist() == one.token_ids[-n:].tolist() * 3 for n in range(1, 41))
        assert ends == (one in looping)
    freed = (await driver.status()).worker
    assert freed.progress_age_seconds == 0


async def test_abort_ends_the_named_trajectories_only(driver: RolloutDriver) -> None:
    # The model of this test has learned nothing and may end any response at once: many run, and groups are tried.
    for iteration in range(150, 160):
        samples = await driver.open_group(32, iteration=iteration)
        named, others = samples[:16], samples[16:]
        await driver.begin(iteration, max_response_tokens=200)
        await driver.until(lambda status: status.progress.num_running >= 2 or status.progress.drained)
        request = rollout_pb2.AbortRequest(fence=driver.fence, trajectory_ids=[*named, "unknown"])
        aborted = await driver.client.call(driver.client.stub.Abort, request, timeout_s=10)
        await driver.drained()
        if aborted.num_aborted:
            break
    found = {one.trajectory_id: one for one in await driver.trajectories(samples)}
    ended = {one for one in samples if found[one].finish_reason == common_pb2.FINISH_REASON_ABORTED}
    assert aborted.num_aborted == len(ended) >= 1
    assert ended <= set(named)
    natural = (common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH)
    assert all(found[one].finish_reason in natural for one in others)


async def test_scores_are_the_log_probs_that_generation_reported(driver: RolloutDriver) -> None:
    made = (await driver.generate(request("g", 40)))["g"]
    assert len(made.token_ids) == 40
    assert made.finish_reason == common_pb2.FINISH_REASON_LENGTH
    [scores] = await driver.score([*PROMPT, *made.token_ids])
    assert scores[len(PROMPT) - 1 :] == pytest.approx(made.log_probs, abs=1e-4)


async def test_generate_serves_many_and_ends_what_its_client_leaves(driver: RolloutDriver) -> None:
    answers = await driver.generate(*(request(f"r{n}", 5 + n, temperature=1.0) for n in range(20)))
    assert {name: len(one.token_ids) for name, one in answers.items()} == {f"r{n}": 5 + n for n in range(20)}

    async def endless() -> AsyncIterator[rollout_pb2.GenerateRequest]:
        yield request("long", 190)
        await asyncio.sleep(3600)

    with pytest.raises(DeadlineError):
        async for _ in driver.client.stream(driver.client.stub.Generate, endless(), timeout_s=0.1):
            pass
    await driver.until(lambda status: status.worker.progress_age_seconds == 0)


async def test_nothing_is_generated_before_the_version_is_admitted(driver: RolloutDriver) -> None:
    ids = await driver.open_group(1, iteration=160)
    driver.version += 1
    manifest = publish(read_weights(driver.folder, 2), driver.folder / "next", driver.version)
    attestation = await driver.update(manifest, key="once")
    assert (attestation.version, attestation.digest) == (driver.version, manifest.digest)
    assert list(attestation.tensor_digests) == [one.digest for one in manifest.tensors]
    assert await driver.update(manifest, key="once") == attestation, "a repeated call answers the same"
    with pytest.raises(WeightMismatchError, match="not admitted"):
        await driver.begin(160)
    with pytest.raises(WeightMismatchError, match="not admitted"):
        await driver.generate(request("g", 4))
    with pytest.raises(WeightMismatchError, match="holds version"):
        await driver.admit(driver.version + 1)
    await driver.admit(driver.version)
    with pytest.raises(WeightMismatchError):
        await driver.client.call(
            driver.client.stub.Begin, begin_request(driver.fence, 160, driver.version - 1), timeout_s=10
        )
    await driver.roll_out(160, max_response_tokens=10)
    [ended] = await driver.trajectories(ids)
    assert {one.weight_version for one in ended.segments} == {driver.version}


async def test_weights_that_are_streamed_through_a_bucket_are_attested_too(driver: RolloutDriver) -> None:
    driver.version += 1
    given = read_weights(driver.folder, 7)
    channel = IpcChannel(f"engines-{os.getpid()}", "here", "secret")
    try:
        tensors = [Exported(name, value.shape, torch.from_numpy(value)) for name, value in given.items()]
        written = channel.write(driver.version, [(one.name, one.shape) for one in tensors], "float32", tensors)
        digests = [spec.digest for spec in written.tensors]
        manifest = common_pb2.WeightManifest(
            version=driver.version, channel="ipc", shards=written.shards, tensors=written.tensors,
            digest=manifest_digest(written.tensors, digests),
        )  # fmt: skip
        attestation = await driver.update(manifest)
        assert list(attestation.tensor_digests) == digests
        streamed = await driver.score(PROMPT)
        await driver.update(publish(given, driver.folder / "same", driver.version))
        assert await driver.score(PROMPT) == streamed
    finally:
        await asyncio.to_thread(channel.close)
        await driver.serve(seed=1)


async def test_a_corrupted_byte_shows_in_the_attestation(driver: RolloutDriver) -> None:
    driver.version += 1
    path = driver.folder / "corrupted"
    manifest = publish(read_weights(driver.folder, 3), path, driver.version)
    victim = manifest.tensors[4]
    with path.open("r+b") as file:
        file.seek(victim.offset + 2)
        byte = file.read(1)
        file.seek(victim.offset + 2)
        file.write(bytes([byte[0] ^ 1]))
    attestation = await driver.update(manifest)
    differing = [n for n, one in enumerate(manifest.tensors) if one.digest != attestation.tensor_digests[n]]
    assert differing == [4]
    assert attestation.digest != manifest.digest
    await driver.serve(seed=1)


async def test_a_stale_fence_is_refused_everywhere(driver: RolloutDriver) -> None:
    fresh, stale = driver.fence, common_pb2.Fence(epoch=driver.fence.epoch, counter=driver.fence.counter - 1)
    if stale.counter < 0:
        driver.fence = fresh = await driver.buffer.advance_fence(fresh)
        await driver.pause()
        stale = common_pb2.Fence(epoch=fresh.epoch, counter=fresh.counter - 1)
    stub = driver.client.stub
    calls = [
        (stub.Begin, begin_request(stale, 170, driver.version)),
        (stub.Pause, rollout_pb2.PauseRequest(fence=stale)),
        (stub.Abort, rollout_pb2.AbortRequest(fence=stale)),
        (stub.UpdateWeights, rollout_pb2.UpdateWeightsRequest(fence=stale)),
        (stub.Admit, rollout_pb2.AdmitRequest(fence=stale, version=driver.version)),
        (stub.ReleaseDevice, rollout_pb2.RolloutReleaseDeviceRequest(fence=stale, method="idle")),
        (stub.AcquireDevice, rollout_pb2.RolloutAcquireDeviceRequest(fence=stale)),
    ]
    for method, message in calls:
        with pytest.raises(StaleFenceError):
            await driver.client.call(method, message, timeout_s=10)


async def test_an_idle_engine_stands_still_and_comes_back(driver: RolloutDriver) -> None:
    stub = driver.client.stub
    release = rollout_pb2.RolloutReleaseDeviceRequest(fence=driver.fence, method="idle")
    released = (await driver.client.call(stub.ReleaseDevice, release, timeout_s=10)).device
    assert released.state == common_pb2.DEVICE_STATE_RELEASED
    try:
        before = (await driver.status()).worker.device.cpu_seconds
        await asyncio.sleep(0.5)
        after = (await driver.status()).worker.device.cpu_seconds
        assert after - before < 0.15
        with pytest.raises(RequestError, match="released its device"):
            await driver.generate(request("g", 4))
    finally:  # the engine serves the tests that follow
        acquire = rollout_pb2.RolloutAcquireDeviceRequest(fence=driver.fence)
        acquired = (await driver.client.call(stub.AcquireDevice, acquire, timeout_s=10)).device
    assert acquired.state == common_pb2.DEVICE_STATE_RESIDENT
    assert len((await driver.generate(request("g", 4)))["g"].token_ids) == 4


@pytest.mark.parametrize(
    "bad",
    [
        request("no-prompt", 4, prompt=[]),
        request("no-tokens", 0),
        request("too-long", 4, prompt=[1] * 300),
    ],
    ids=lambda one: one.request_id,
)
async def test_requests_that_can_never_run_are_refused(driver: RolloutDriver, bad: rollout_pb2.GenerateRequest) -> None:
    with pytest.raises(RequestError, match="prompt tokens"):
        await driver.generate(bad)


async def test_status_describes_the_worker(driver: RolloutDriver) -> None:
    worker = (await driver.status()).worker
    assert (worker.worker_id, worker.role, worker.state) == ("rollout-0", "rollout", "ready")
    assert worker.admitted
    assert worker.weight_version == driver.version
    assert worker.resident_bytes > 1 << 20
