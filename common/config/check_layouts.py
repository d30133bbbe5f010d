"""Rules over layouts: whether each stage's ranks and engines fit its devices. Called by check.py."""

from collections.abc import Callable, Iterator

from crescendo.common.config.check_rl import stages
from crescendo.common.config.layouts import Layout, layout_of
from crescendo.common.config.problems import Problem
from crescendo.common.config.schema import Config

SIZES = ("rollout.num_engines", "rollout.tensor_parallel", "trainer.tensor_parallel", "trainer.data_parallel")


def _layouts(config: Config) -> list[tuple[str, Layout]]:
    """The layouts that the run takes, with where in the run file each is said."""
    named = [(f"{path}.layout", layout_of(config, stage)) for path, stage in stages(config)]
    return named or [("", layout_of(config))]


def _stage_devices(config: Config) -> Iterator[Problem]:
    have = config.placement.num_devices
    for path, stage in stages(config):
        if stage.layout.devices > have:
            yield Problem(
                f"{path}.layout.devices",
                f"{path}.layout.devices is {stage.layout.devices}; placement.num_devices, the most that a stage may "
                f"have, is {have}.",
                "Raise placement.num_devices (in an RLJob: placement.nodes), or lower the stage's.",
                ("placement.num_devices",),
            )


def _devices(config: Config) -> Iterator[Problem]:
    """On CPU ranks and engines share cores, in either placement; nothing is counted."""
    if config.placement.device != "gpu":
        return
    told = set()
    for at, layout in _layouts(config):
        parts = [
            ("engines", layout.engine_devices, layout.rollout_devices or layout.devices),
            ("trainer ranks", layout.num_ranks, layout.devices - layout.rollout_devices),
        ]
        for name, need, have in parts:
            if need <= have or (name, need, have) in told:
                continue
            told.add((name, need, have))
            yield Problem(
                "placement.num_devices",
                f"placement.num_devices is {config.placement.num_devices}; {config.placement.name} {name} "
                f"{f'of {at} ' if at else ''}need {need} devices and have {have}.",
                "Raise num_devices, or use fewer engines or ranks.",
                SIZES,
            )


def _experts(config: Config) -> Iterator[Problem]:
    for path, stage in stages(config):
        layout = layout_of(config, stage)
        replicas = layout.data_parallel * layout.context_parallel
        if replicas % layout.expert_parallel and layout != layout_of(config):
            yield Problem(
                f"{path}.layout.expert_parallel",
                f"{path}.layout gives expert_parallel {layout.expert_parallel}; it must divide data_parallel * "
                f"context_parallel, {replicas}.",
                "Choose a divisor of it, or more data-parallel ranks.",
                ("trainer.expert_parallel", "trainer.data_parallel", "trainer.context_parallel"),
            )


def _placement(config: Config) -> Iterator[Problem]:
    placement, channel = config.placement, config.trainer.weight_channel
    if placement.name == "disaggregated" and channel in ("shm", "ipc"):
        yield Problem(
            "trainer.weight_channel",
            f"trainer.weight_channel is {channel}, which works within a machine or GPU; placement.name is "
            "disaggregated, and trainer and engines may be on different machines.",
            "Set trainer.weight_channel to tcp.",
            ("placement.name",),
        )
    if placement.name == "colocated" and placement.rollout_devices:
        yield Problem(
            "placement.rollout_devices",
            f"placement.rollout_devices is {placement.rollout_devices}; placement.name is colocated, where trainer and "
            "engines share all devices.",
            "Set it to 0, or placement.name to disaggregated.",
            ("placement.name",),
        )


RULES: tuple[Callable[[Config], Iterator[Problem]], ...] = (_stage_devices, _devices, _experts, _placement)
