"""Rules over the steps of a run file and their stages. Called by check.py."""

from collections.abc import Callable, Iterator

from crescendo.common.config.problems import Problem
from crescendo.common.config.rl import RlStepConfig, StageConfig
from crescendo.common.config.schema import Config, SftStepConfig


def rl_steps(config: Config) -> list[tuple[str, RlStepConfig]]:
    """The RL steps with their paths in the run file."""
    return [(f"steps[{i}].rl", step.rl) for i, step in enumerate(config.steps) if step.kind == "rl"]


def stages(config: Config) -> list[tuple[str, StageConfig]]:
    """The stages of all RL steps, in order, with their paths."""
    return [(f"{path}.stages[{i}]", stage) for path, rl in rl_steps(config) for i, stage in enumerate(rl.stages)]


def _unused_blocks(config: Config) -> Iterator[Problem]:
    for index, step in enumerate(config.steps):
        other = "rl" if step.kind == "sft" else "sft"
        unused = step.rl != RlStepConfig() if other == "rl" else step.sft != SftStepConfig()
        if unused:
            yield Problem(
                f"steps[{index}].{other}",
                f"steps[{index}].{other} is set, but steps[{index}].kind is {step.kind}; it would be ignored.",
                f"Set kind to {other}, or remove the block.",
            )


def _stage_names(config: Config) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for path, rl in rl_steps(config):
        if not rl.stages:
            yield Problem(
                f"{path}.stages", f"{path}.stages is empty; an RL step has at least one stage.", "Add a stage."
            )
    for path, stage in stages(config):
        first = seen.setdefault(stage.name, path)
        if first != path:
            yield Problem(
                f"{path}.name",
                f"{path}.name is {stage.name!r}, which {first} has already; names are unique in the run.",
                "Rename one of the two.",
                (f"{first}.name",),
            )


def _response_limits(config: Config) -> Iterator[Problem]:
    for path, rl in rl_steps(config):
        for index, (before, stage) in enumerate(zip(rl.stages, rl.stages[1:], strict=False), 1):
            if stage.max_response_tokens < before.max_response_tokens:
                yield Problem(
                    f"{path}.stages[{index}].max_response_tokens",
                    f"{path}.stages[{index}].max_response_tokens is {stage.max_response_tokens}; it must be at least "
                    f"that of the stage before, {before.max_response_tokens}: contexts only grow.",
                    "Raise it, or order the stages by length.",
                    (f"{path}.stages[{index - 1}].max_response_tokens",),
                )
    for path, stage in stages(config):
        if stage.token_budget > stage.max_response_tokens:
            yield Problem(
                f"{path}.token_budget",
                f"{path}.token_budget is {stage.token_budget}; it must be at most max_response_tokens, "
                f"{stage.max_response_tokens}.",
                "Lower it, or set 0 for no budget.",
                (f"{path}.max_response_tokens",),
            )
        yield from _fits_model(path, stage, config)


def _fits_model(path: str, stage: StageConfig, config: Config) -> Iterator[Problem]:
    prompt, positions = config.data.max_prompt_tokens, config.model.scratch.max_positions
    if config.model.source == "scratch" and prompt + stage.max_response_tokens > positions:
        yield Problem(
            f"{path}.max_response_tokens",
            f"{path}.max_response_tokens is {stage.max_response_tokens}; with data.max_prompt_tokens, {prompt}, it "
            f"must fit in model.scratch.max_positions, {positions}.",
            f"Raise max_positions to {prompt + stage.max_response_tokens}, or shorten prompt or response.",
            ("data.max_prompt_tokens", "model.scratch.max_positions"),
        )


def _groups(config: Config) -> Iterator[Problem]:
    for path, rl in rl_steps(config):
        for index, stage in enumerate(rl.stages):
            at = f"{path}.stages[{index}]"
            if stage.samples_per_prompt < 2:
                yield Problem(
                    f"{at}.samples_per_prompt",
                    f"{at}.samples_per_prompt is {stage.samples_per_prompt}; {rl.algorithm.name} compares the samples "
                    "of a prompt with one another and needs at least 2.",
                    "Raise it; 8 is common.",
                )
            if rl.algorithm.num_mini_batches > stage.prompts_per_iteration:
                yield Problem(
                    f"{path}.algorithm.num_mini_batches",
                    f"{path}.algorithm.num_mini_batches is {rl.algorithm.num_mini_batches}; it must be at most "
                    f"{at}.prompts_per_iteration, {stage.prompts_per_iteration}: a group is not split.",
                    "Lower it, or draw more prompts.",
                    (f"{at}.prompts_per_iteration",),
                )


def _gates(config: Config) -> Iterator[Problem]:
    for path, stage in stages(config):
        gate = stage.gate
        first = gate.iterations if gate.name == "step" else gate.min_iterations
        name = "iterations" if gate.name == "step" else "min_iterations"
        if gate.name != "manual" and first > stage.max_iterations:
            yield Problem(
                f"{path}.gate.{name}",
                f"{path}.gate.{name} is {first}; it must be at most the stage's max_iterations, "
                f"{stage.max_iterations}, or the gate never decides.",
                "Lower it, or raise max_iterations.",
                (f"{path}.max_iterations",),
            )


def _reward_weights(config: Config) -> Iterator[Problem]:
    known = {link.scorer for chain in config.rewards.chains.values() for link in chain}
    known |= {link.scorer for link in config.rewards.group}
    for path, stage in stages(config):
        for name in stage.reward_weights:
            if name not in known:
                yield Problem(
                    f"{path}.reward_weights.{name}",
                    f"{path}.reward_weights names {name!r}, which is in no chain; there are: "
                    f"{', '.join(sorted(known)) or 'none'}.",
                    "Correct the name, or add the scorer to rewards.chains or rewards.group.",
                    ("rewards",),
                )


def _repetition(config: Config) -> Iterator[Problem]:
    for path, rl in rl_steps(config):
        rule = rl.repetition
        need = rule.ngram_tokens * rule.count
        if rule.enabled and rule.window_tokens < need:
            yield Problem(
                f"{path}.repetition.window_tokens",
                f"{path}.repetition.window_tokens is {rule.window_tokens}; to see an n-gram of {rule.ngram_tokens} "
                f"tokens {rule.count} times it must be at least {need}.",
                "Widen the window, or lower ngram_tokens or count.",
                (f"{path}.repetition.ngram_tokens", f"{path}.repetition.count"),
            )


def _difficulty(config: Config) -> Iterator[Problem]:
    source = config.data.train
    for path, rl in rl_steps(config):
        order = rl.curriculum.order
        if order not in ("uniform", "epoch") and source.name != "task" and "difficulty" not in source.columns:
            yield Problem(
                f"{path}.curriculum.order",
                f"{path}.curriculum.order is {order}, but data.train.columns names no difficulty to order by.",
                "Map difficulty to a column with numbers from 0 (easy) to 1 (hard), or use uniform or epoch.",
                ("data.train.columns",),
            )


def _epoch(config: Config) -> Iterator[Problem]:
    for path, rl in rl_steps(config):
        if rl.curriculum.order == "epoch" and rl.curriculum.prioritized.enabled:
            yield Problem(
                f"{path}.curriculum.prioritized.enabled",
                f"{path}.curriculum.prioritized.enabled is true, but the order epoch hands every prompt out once.",
                "Set it to false, or choose another order.",
                (f"{path}.curriculum.order",),
            )


def _staleness(config: Config) -> Iterator[Problem]:
    for path, rl in rl_steps(config):
        if rl.max_staleness:
            yield Problem(
                f"{path}.max_staleness",
                f"{path}.max_staleness is {rl.max_staleness}; this version runs synchronous iterations only, so it "
                "must be 0.",
                "Set it to 0; partial rollouts keep long responses from holding up an iteration.",
            )


def _decay(config: Config) -> Iterator[Problem]:
    for path, rl in rl_steps(config):
        rate = rl.learning_rate
        if rate.schedule != "constant" and not rate.decay_steps:
            yield Problem(
                f"{path}.learning_rate.decay_steps",
                f"{path}.learning_rate.decay_steps is 0 with schedule {rate.schedule}; gates decide how long an RL "
                "step takes, so its last optimizer step is not known.",
                "Give decay_steps, or use the constant schedule.",
                (f"{path}.learning_rate.schedule",),
            )


RULES: tuple[Callable[[Config], Iterator[Problem]], ...] = (
    _unused_blocks,
    _stage_names,
    _response_limits,
    _groups,
    _gates,
    _reward_weights,
    _repetition,
    _difficulty,
    _epoch,
    _staleness,
    _decay,
)
