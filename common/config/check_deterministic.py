"""What `run.deterministic` cannot hold, refused before anything starts. Called by check.py."""

from collections.abc import Callable, Iterator

from crescendo.common.config.check_rl import rl_steps, stages
from crescendo.common.config.layouts import layout_of
from crescendo.common.config.problems import Problem
from crescendo.common.config.schema import Config


def _deterministic(config: Config) -> Iterator[Problem]:
    if not config.run.deterministic:
        return
    rollout, trainer = config.rollout, config.trainer
    wanted: list[tuple[str, object, object, str]] = [
        ("rollout.num_engines", rollout.num_engines, 1, "which engine takes what depends on the moment"),
        ("rollout.tensor_parallel", rollout.tensor_parallel, 1, "sums over devices come in any order"),
        ("rollout.prefix_caching", rollout.prefix_caching, False, "what is cached depends on the moment"),
        ("trainer.data_parallel", trainer.data_parallel, 1, "sums over ranks come in any order"),
        ("trainer.tensor_parallel", trainer.tensor_parallel, 1, "sums over ranks come in any order"),
        ("trainer.context_parallel", trainer.context_parallel, 1, "sums over ranks come in any order"),
        ("trainer.pipeline_parallel", trainer.pipeline_parallel, 1, "sums over ranks come in any order"),
        ("placement.device", config.placement.device, "cpu", "GPU kernels add in any order"),
    ]
    wanted += [
        (f"{path}.partial.train_ratio", step.partial.train_ratio, 1.0, "who is done first depends on the moment")
        for path, step in rl_steps(config)
    ]
    wanted += [
        (f"{path}.layout", str(layout_of(config, stage)), str(layout_of(config)), "sums over ranks come in any order")
        for path, stage in stages(config)
    ]
    for path, value, must, why in wanted:
        if value != must:
            yield Problem(
                path,
                f"{path} is {_shown(value)}; with run.deterministic it must be {_shown(must)}: {why}.",
                f"Set {path} to {_shown(must)}, or run.deterministic to false.",
                ("run.deterministic",),
            )
    for path, threads in (("rollout.threads", rollout.threads), ("trainer.threads", trainer.threads)):
        if threads == 0:
            yield Problem(
                path,
                f"{path} is 0, the machine's number of cores; with run.deterministic it must be given, because sums "
                "depend on how they are divided.",
                f"Set {path}, to 2 for example.",
                ("run.deterministic",),
            )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


RULES: tuple[Callable[[Config], Iterator[Problem]], ...] = (_deterministic,)
