"""Layouts: what a stage's block leaves out is kept or follows from its devices."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.config import Config, load_config
from crescendo.common.config.layouts import Layout, has_device_counts, layout_of, stage_at
from crescendo.common.config.rl import RlStepConfig, StageConfig, StageLayoutConfig
from crescendo.common.config.schema import PlacementConfig, RolloutConfig, StepConfig, TrainerConfig
from crescendo.common.errors import ConfigError

RECIPES = Path(__file__).parents[3] / "recipes"


def config(devices: int = 8, *, apart: int = 0, engines: int = 8, **trainer: int) -> Config:
    """A run whose ranks take the devices that `apart` leaves."""
    name = "disaggregated" if apart else "colocated"
    return Config(
        placement=PlacementConfig(device="gpu", name=name, num_devices=devices, rollout_devices=apart),
        trainer=TrainerConfig(**({"data_parallel": devices - apart} | trainer), weight_channel="tcp"),
        rollout=RolloutConfig(num_engines=engines),
    )


def stage(**layout: int) -> StageConfig:
    return StageConfig(name="s", layout=StageLayoutConfig(**layout))


def test_a_stage_without_a_block_has_the_layout_of_the_run() -> None:
    assert layout_of(config(), stage()) == layout_of(config())
    assert layout_of(config()) == Layout(8, 0, 1, 1, 1, 1, 8, 8, 1)


def test_ranks_and_engines_follow_the_devices_of_the_stage() -> None:
    quarter = layout_of(config(32, engines=32), stage(devices=8))
    assert (quarter.num_ranks, quarter.num_engines) == (8, 8)
    wide = layout_of(config(), stage(tensor_parallel=2, context_parallel=2, engine_tensor_parallel=4))
    assert (wide.data_parallel, wide.num_ranks, wide.num_engines) == (2, 8, 2)


def test_a_wider_gang_on_cores_gets_the_ranks_that_it_needs() -> None:
    found = layout_of(Config(), stage(tensor_parallel=2))
    assert (found.num_ranks, found.data_parallel, found.num_engines) == (2, 1, 1)


def test_engines_apart_keep_their_share() -> None:
    whole, half = config(16, apart=4, engines=4), stage(devices=8)
    found = layout_of(whole, half)
    assert (found.trainer_devices, found.rollout_devices, found.num_ranks, found.num_engines) == (6, 2, 6, 2)
    assert [found.first_device("trainer", 5), found.first_device("rollout", 0), found.first_device("rollout", 1)] == [
        5, 6, 7,
    ]  # fmt: skip


@given(
    per=st.integers(1, 4), scale=st.integers(1, 4), tensor=st.sampled_from([1, 2, 4]), engine=st.sampled_from([1, 2, 4])
)
def test_what_follows_fits_the_devices(per: int, scale: int, tensor: int, engine: int) -> None:
    run = config(16 * per, engines=16 * per)
    found = layout_of(run, stage(devices=4 * scale * per, tensor_parallel=tensor, engine_tensor_parallel=engine))
    assert found.num_ranks <= found.devices
    assert found.engine_devices <= found.devices
    assert found.num_ranks == found.devices
    assert found.engine_devices == found.devices


def test_what_may_stay_over_a_change() -> None:
    run = config()
    base, more, wide = layout_of(run), layout_of(run, stage(num_engines=4)), layout_of(run, stage(tensor_parallel=2))
    assert more.same_trainer(base)
    assert more.same_engines(base)
    assert more != base
    assert wide.same_engines(base)
    assert not wide.same_trainer(base)
    fewer = layout_of(run, stage(devices=4))
    assert not fewer.same_trainer(base)
    assert not fewer.same_engines(base)


def test_a_warm_up_runs_in_the_layout_of_the_stage_that_follows() -> None:
    first, second = StageConfig(name="first"), StageConfig(name="second")
    run = Config(steps=[StepConfig(kind="sft"), StepConfig(kind="rl", rl=RlStepConfig(stages=[first, second]))])
    assert stage_at(run, 0) is first
    assert stage_at(run, 1) is first
    assert stage_at(run, 1, "second") is second
    assert stage_at(run, 2, "second") is second
    assert stage_at(Config(steps=[StepConfig(kind="sft")]), 0) is None


def test_the_recipe_with_stages_on_8_and_32_devices_fits() -> None:
    run = load_config(RECIPES / "deepscaler" / "recipe.yaml")
    assert has_device_counts(run)
    layouts = [layout_of(run, one) for one in run.steps[-1].rl.stages]
    assert [(one.num_ranks, one.num_engines) for one in layouts] == [(8, 8), (32, 32), (32, 32)]


def test_a_stage_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"trainer ranks of steps\[1\].rl.stages\[1\].layout need 2 devices and have 1"
    ):
        load_config(
            RECIPES / "quickstart" / "recipe.yaml",
            ["placement.device=gpu", "steps.1.rl.stages.1.layout.data_parallel=2"],
        )  # fmt: skip
    with pytest.raises(ConfigError, match="must divide data_parallel"):
        load_config(
            RECIPES / "quickstart" / "recipe.yaml", ["steps.1.rl.stages.1.layout.expert_parallel=2"]
        )  # fmt: skip
