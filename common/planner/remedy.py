"""What to change in a run that does not fit: the smallest change after which the planner finds that it fits. Pure.

Round by round: the first stage that does not fit, and the fewest settings after which it does, or has a problem less,
while the stages before it still fit. Kinds of settings (recomputation, a parallel size, ...) are tried in the order in
which they cost least; shorter responses, which change what is trained, when nothing else helps. Where no setting does,
more GPUs, then larger ones.
"""

import itertools
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from crescendo.common.config import check_layouts
from crescendo.common.config.check_rl import stages
from crescendo.common.config.layouts import layout_of
from crescendo.common.config.rl import StageConfig
from crescendo.common.config.schema import Config
from crescendo.common.planner.phases import GIB, Machine, StagePlan, plan_stages, shortage
from crescendo.common.planner.shape import Shape

MOST_TOGETHER: Final = 3  # settings of one round
MOST_ROUNDS: Final = 6
MOST_GPUS: Final = 512
SIZES: Final = (1, 2, 4, 8, 16)
MOST_TENSOR: Final = 8  # tensor parallelism stays within a machine
SHORTEST: Final = 1024  # tokens of a response
UTILIZATIONS: Final = (0.9, 0.95)
_STEP = re.compile(r"\w+")

Setting = tuple[str, object]
"""A path in the run file, as in steps[0].rl.stages[1].max_response_tokens, and a value."""
Change = tuple[Setting, ...]


def remedy(config: Config, shape: Shape, machine: Machine) -> str:
    """Words for the user."""
    for drastic in (False, True):
        found = _settings(config, shape, machine, drastic=drastic)
        if found:
            return f"Set {_listed(found)}: then it fits."
    larger = _larger(config, shape, machine)
    if not machine.gpus or _is_of_host(config, shape, machine):
        return larger
    gpus = machine.gpus
    while gpus < MOST_GPUS:
        gpus *= 2
        found = _settings(config, shape, replace(machine, gpus=gpus))
        if found is not None:
            return f"Take {gpus} GPUs{f', and set {_listed(found)}' if found else ''}: then it fits."
    return larger


def _is_of_host(config: Config, shape: Shape, machine: Machine) -> bool:
    planned = plan_stages(config, shape, machine)
    return next((phase.is_host for stage in planned for phase in stage.phases() if not phase.fits), False)


def _larger(config: Config, shape: Shape, machine: Machine) -> str:
    """The memory with which it fits as it is."""
    words = []
    for gpu in (True, False):
        phases = [phase for stage in plan_stages(config, shape, machine) for phase in stage.phases()]
        held = {phase.capacity for phase in phases if not phase.fits}
        have = machine.gpu_bytes if gpu else machine.host_bytes
        short = [phase for phase in phases if not phase.fits and phase.is_host is not gpu]
        if not short or have is None or not held:
            continue
        need = max(-(-phase.num_bytes * have // (phase.capacity or have)) for phase in short)
        need = -(-need // GIB) * GIB
        machine = replace(machine, gpu_bytes=need) if gpu else replace(machine, host_bytes=need)
        words.append(f"{'GPUs' if gpu else 'a machine'} with {need // GIB} GiB")
    if not words or shortage(plan_stages(config, shape, machine)):
        return "Take more GPUs, or a smaller model."
    return f"Take {' and '.join(words)}, or a smaller model: no setting makes this one fit."


def _settings(config: Config, shape: Shape, machine: Machine, *, drastic: bool = False) -> Change | None:
    """All settings that make it fit; None when there are none. drastic: shorter responses too."""
    made: dict[str, object] = {}
    current = config
    for _ in range(MOST_ROUNDS):
        planned = plan_stages(current, shape, machine)
        if not shortage(planned):
            return tuple(made.items())
        change = _round(current, planned, shape, machine, drastic)
        if not change:
            return None
        made.update(change)
        current = applied(current, change)
    return None


def _round(config: Config, planned: Sequence[StagePlan], shape: Shape, machine: Machine, drastic: bool) -> Change:
    """The fewest settings with which the first stage that does not fit has a problem less, the best of them."""
    index = next(i for i, stage in enumerate(planned) if stage.problems())
    before = planned[index]

    def tried(change: Change) -> tuple[Change, list[StagePlan]] | None:
        """The change with what follows from it; None when it breaks a rule of layouts or a stage that fitted."""
        settled = (*change, *_consequences(applied(config, change), index, before))
        wanted = applied(config, settled)
        after = plan_stages(wanted, shape, machine)
        broken = any(stage.problems() for stage in after[:index]) or not after[index].is_divided
        return None if broken or not _is_valid(config, wanted) else (settled, after)

    def helps(change: Change) -> bool:
        found = tried(change)
        return found is not None and found[1][index].worst < before.worst

    kinds = [[option for option in kind if helps(option)] for kind in _kinds(config, index, before, drastic)]
    kinds = [kind for kind in kinds if kind]
    for count in range(1, MOST_TOGETHER + 1):
        partly: Change = ()
        for chosen in itertools.combinations(kinds, count):
            for options in itertools.product(*chosen):
                found = tried(tuple(itertools.chain.from_iterable(options)))
                left = found[1][index].problems() if found else before.problems()
                if found and not left:
                    return found[0]
                if found and not partly and len(left) < len(before.problems()):
                    partly = found[0]
        if partly:
            return partly
    return ()


def _is_valid(config: Config, wanted: Config) -> bool:
    """Whether a change breaks no rule of layouts that held before."""
    known = {problem.field for rule in check_layouts.RULES for problem in rule(config)}
    return not any(problem.field not in known for rule in check_layouts.RULES for problem in rule(wanted))


def applied(config: Config, change: Change) -> Config:
    """The run with the settings changed; what is not changed is shared with the run given."""
    made: Any = config
    for path, value in change:
        made = _with(made, _STEP.findall(path), value)
    return typing.cast(Config, made)


def _with(node: Any, steps: Sequence[str], value: object) -> Any:
    if not steps:
        return value
    first, rest = steps[0], steps[1:]
    if isinstance(node, list):
        index = int(first)
        return [*node[:index], _with(node[index], rest, value), *node[index + 1 :]]
    return replace(node, **{first: _with(getattr(node, first), rest, value)})


def _consequences(config: Config, index: int, before: StagePlan) -> Change:
    """What must change with parallel sizes: data parallelism takes the ranks that are left, and is at least what
    experts need; devices are as many as both sides take."""
    path, stage = stages(config)[index]
    layout, was = layout_of(config, stage), before.layout
    sizes = layout.tensor_parallel * layout.pipeline_parallel * layout.context_parallel
    settings: list[Setting] = []
    if layout.trainer_options() != was.trainer_options() and layout.data_parallel == was.data_parallel:
        ranks = min(was.num_ranks, before.machine.gpus)
        data = max(1, ranks // sizes, -(-layout.expert_parallel // layout.context_parallel))
        if data != layout.data_parallel:
            settings.append((_where(stage, path, "data_parallel"), data))
            layout = replace(layout, data_parallel=data)
    need = layout.num_ranks + layout.engine_devices if before.apart else max(layout.num_ranks, layout.engine_devices)
    if before.machine.gpus and need > config.placement.num_devices:
        settings.append(("placement.num_devices", need))
    return tuple(settings)


# What may be changed ------------------------------------------------------------------------------------


def _kinds(config: Config, index: int, plan: StagePlan, drastic: bool) -> Iterator[list[Change]]:
    """Kinds of settings, cheapest first, each with its options."""
    path = stages(config)[index][0]
    rollout, trainer, stage = config.rollout, config.trainer, plan.stage
    yield [((_where(stage, path, "max_tokens_per_micro_batch"), plan.longest),)]
    yield [(("trainer.weight_channel", name),) for name in ("shm", "disk") if name != trainer.weight_channel]
    yield [(("trainer.async_checkpoint", False),)]
    yield [(("rollout.gpu_memory_utilization", share),) for share in UTILIZATIONS]
    yield [(("rollout.max_batched_tokens", n),) for n in (2048, 512) if n < rollout.max_batched_tokens]
    yield [(("rollout.max_concurrency", n),) for n in (64, 16) if n < rollout.max_concurrency]
    yield [(("rollout.kv_cache_gib", rollout.kv_cache_gib / n),) for n in (2, 8)]
    yield [(("trainer.recompute", "full"),)]
    yield [(("trainer.distributed_optimizer", True),)]
    if plan.machine.gpus:
        yield from _parallel(path, plan)
    if drastic:
        response = stage.max_response_tokens
        yield [((f"{path}.max_response_tokens", response // n),) for n in (2, 4, 8) if response // n >= SHORTEST]


def _parallel(path: str, plan: StagePlan) -> Iterator[list[Change]]:
    """Other sizes of the trainer's dimensions and of the engines: larger ones for memory, smaller ones for devices."""
    shape, layout, stage = plan.shape, plan.layout, plan.stage
    heads = (shape.num_heads, shape.num_kv_heads, shape.ffn_size)
    divided = {
        "data_parallel": (),
        "tensor_parallel": () if shape.num_experts else heads,
        "expert_parallel": (shape.num_experts,) if shape.num_experts else (),
        "pipeline_parallel": (shape.num_layers,),
        "context_parallel": (max(SIZES),),
    }
    smaller = SIZES if plan.devices > plan.machine.gpus else ()
    for name, widths in divided.items():
        now = getattr(layout, name)
        sizes = [n for n in SIZES if n > now and widths and not any(width % n for width in widths)]
        if name == "tensor_parallel":
            sizes = [n for n in sizes if n <= MOST_TENSOR]
        sizes += [n for n in reversed(smaller) if n < now]
        yield [((_where(stage, path, name), n),) for n in sizes]
    now, count = layout.engine_tensor_parallel, layout.num_engines
    size_at = _where(stage, path, "engine_tensor_parallel", "rollout.tensor_parallel")
    count_at = _where(stage, path, "num_engines", "rollout.num_engines")
    fitting = [n for n in SIZES if n != now and n <= MOST_TENSOR and not (shape.num_heads % n or shape.ffn_size % n)]
    yield [((size_at, n), (count_at, max(1, count * now // n))) for n in fitting]
    yield [((count_at, n),) for n in reversed(smaller) if n < count]


def _where(stage: StageConfig, path: str, name: str, of_run: str = "") -> str:
    """A stage's own setting, if it has one, or the run's."""
    return f"{path}.layout.{name}" if getattr(stage.layout, name) else of_run or f"trainer.{name}"


def _listed(change: Change) -> str:
    texts = [f"{path}={str(value).lower() if isinstance(value, bool) else value}" for path, value in change]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
