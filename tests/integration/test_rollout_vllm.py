"""What only a real engine can get wrong: weights in the right place, under a forward pass of transformers.

vLLM starts once, in a process of its own, with random weights.
"""

import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest
import pytest_asyncio
from safetensors.numpy import save_file

from crescendo.common.errors import RequestError, WeightMismatchError
from crescendo.proto.v1 import common_pb2, rollout_pb2
from tests.contract.engine_cases import (
    PROMPT,
    RolloutDriver,
    publish,
    read_weights,
    request,
    served,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # importing torch and transformers
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TOLERANCE = 1e-4
MISTAKE = 1e-2  # a wrong mapping differs by more than this
Reference = Callable[[int, Sequence[int]], list[float]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RolloutDriver]:
    async with served("vllm", tmp_path_factory.mktemp("vllm"), {}) as made:
        yield made


@pytest.fixture(scope="module")
def reference(driver: RolloutDriver, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Log-probabilities under transformers with the weights of a seed."""
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    root = tmp_path_factory.mktemp("reference")

    def log_probs(seed: int, token_ids: Sequence[int]) -> list[float]:
        import torch
        from transformers import AutoModelForCausalLM

        folder = root / str(seed)
        if not folder.exists():
            folder.mkdir()
            shutil.copy(driver.folder / "config.json", folder)
            save_file(read_weights(driver.folder, seed), folder / "model.safetensors", metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            table = model(torch.tensor([list(token_ids)])).logits[0].log_softmax(-1)
        return [float(table[place, token]) for place, token in enumerate(token_ids[1:])]

    return log_probs


def canaries(count: int = 3, length: int = 40) -> list[common_pb2.Canary]:
    draw = np.random.default_rng(5)
    return [common_pb2.Canary(token_ids=draw.integers(0, 41, length)) for _ in range(count)]


def largest_difference(attestation: common_pb2.Attestation, expected: Sequence[Sequence[float]]) -> float:
    pairs = zip(attestation.canaries, expected, strict=True)
    return max(float(np.abs(np.asarray(echo.log_probs) - np.asarray(want)).max()) for echo, want in pairs)


async def test_each_update_serves_exactly_the_published_weights(driver: RolloutDriver, reference: Reference) -> None:
    probes = canaries()
    for version, seed in enumerate((1, 2, 1), start=1):
        path = driver.folder / f"v{version}"
        manifest = publish(read_weights(driver.folder, seed), path, version)
        manifest.canaries.extend(probes)
        attestation = await driver.update(manifest)
        path.unlink()  # the engine must not read it any more
        expected = [reference(seed, one.token_ids) for one in probes]
        assert attestation.digest == manifest.digest
        assert largest_difference(attestation, expected) < TOLERANCE
        await driver.admit(version)
        made = (await driver.generate(request("greedy", 50)))["greedy"]
        assert made.log_probs == pytest.approx(
            reference(seed, [*PROMPT, *made.token_ids])[len(PROMPT) - 1 :], abs=TOLERANCE
        )
    driver.version = 3


async def test_sampled_log_probs_are_those_of_the_sampled_distribution(
    driver: RolloutDriver, reference: Reference
) -> None:
    hot = request("hot", 80, temperature=1.0)
    made = (await driver.generate(hot))["hot"]
    expected = reference(1, [*PROMPT, *made.token_ids])[len(PROMPT) - 1 :]
    assert made.log_probs == pytest.approx(expected, abs=TOLERANCE)
    narrow = request("narrow", 80, temperature=1.0)
    narrow.sampling.top_p = 0.5
    cut = (await driver.generate(narrow))["narrow"]
    whole = reference(1, [*PROMPT, *cut.token_ids])[len(PROMPT) - 1 :]
    # The nucleus holds between half and all of the mass, so renormalizing adds at most log 2.
    gains = np.asarray(cut.log_probs) - np.asarray(whole)
    assert gains.min() > -TOLERANCE
    assert gains.max() < np.log(2) + TOLERANCE
    assert gains.max() > 0.1


async def test_a_wrong_mapping_has_the_right_digest_and_shows_in_the_canary(
    driver: RolloutDriver, reference: Reference
) -> None:
    weights = read_weights(driver.folder, 2)
    query, key = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"
    weights[query], weights[key] = weights[key], weights[query]
    manifest = publish(weights, driver.folder / "swapped", 10)
    manifest.canaries.extend(canaries())
    attestation = await driver.update(manifest)
    assert attestation.digest == manifest.digest
    expected = [reference(2, one.token_ids) for one in manifest.canaries]
    assert largest_difference(attestation, expected) > MISTAKE


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("model.layers.0.nonsense.weight", RequestError),
        ("", WeightMismatchError),
    ],
    ids=["unknown tensor", "missing tensor"],
)
async def test_manifest_that_does_not_fit_is_refused_and_the_next_one_loads(
    driver: RolloutDriver, reference: Reference, name: str, error: type[Exception]
) -> None:
    manifest = publish(read_weights(driver.folder, 2), driver.folder / "misfit", 20)
    place = next(n for n, one in enumerate(manifest.tensors) if one.name == "model.layers.0.mlp.up_proj.weight")
    if name:
        manifest.tensors[place].name = name
    else:
        del manifest.tensors[place]
    with pytest.raises(error, match="manifest"):
        await driver.update(manifest)
    with pytest.raises(WeightMismatchError):
        await driver.admit(20)
    good = publish(read_weights(driver.folder, 2), driver.folder / "good", 21)
    good.canaries.extend(canaries())
    expected = [reference(2, one.token_ids) for one in good.canaries]
    assert largest_difference(await driver.update(good), expected) < TOLERANCE


async def test_a_seed_is_refused_where_it_would_kill_the_engine(driver: RolloutDriver) -> None:
    await driver.admit(21)
    seeded = request("seeded", 5, temperature=1.0)
    seeded.sampling.seed = 3
    assert (await driver.generate(seeded))["seeded"].finish_reason == common_pb2.FINISH_REASON_ABORTED
    assert len((await driver.generate(request("after", 5)))["after"].token_ids) == 5


async def test_an_engine_that_was_ended_comes_back_with_the_next_weights(
    driver: RolloutDriver, reference: Reference
) -> None:
    release = rollout_pb2.RolloutReleaseDeviceRequest(fence=driver.fence, method="restart")
    await driver.client.call(driver.client.stub.ReleaseDevice, release, timeout_s=60)
    with pytest.raises(WeightMismatchError):
        await driver.generate(request("g", 4))
    manifest = publish(read_weights(driver.folder, 1), driver.folder / "again", 30)
    manifest.canaries.extend(canaries())
    attestation = await driver.update(manifest)
    expected = [reference(1, one.token_ids) for one in manifest.canaries]
    assert largest_difference(attestation, expected) < TOLERANCE
