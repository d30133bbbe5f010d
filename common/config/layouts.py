"""The layout of a stage: which devices it has, and how trainer and engines divide them. Pure.

A stage's `layout` block says only what differs from the run. What it leaves out is kept, or follows from the number of
devices: with half of the run's devices there are half of its ranks and engines. The config check, the controller and
the operator all resolve layouts here.
"""

from dataclasses import dataclass

from crescendo.common.config.rl import StageConfig, StageLayoutConfig
from crescendo.common.config.schema import Config


@dataclass(frozen=True)
class Layout:
    """A resolved layout.

    devices: of trainer and engines together; rollout_devices: how many of them are the engines' own (disaggregated);
    0: trainer and engines share all.
    """

    devices: int
    rollout_devices: int
    tensor_parallel: int
    pipeline_parallel: int
    context_parallel: int
    expert_parallel: int
    data_parallel: int
    num_engines: int
    engine_tensor_parallel: int

    @property
    def num_ranks(self) -> int:
        """Processes of the trainer's gang."""
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel * self.data_parallel

    @property
    def trainer_devices(self) -> int:
        """Devices that trainer ranks may take."""
        return max(1, self.devices - self.rollout_devices)

    @property
    def engine_devices(self) -> int:
        """Devices that all engines take."""
        return self.num_engines * self.engine_tensor_parallel

    def first_device(self, role: str, index: int) -> int:
        """Of a trainer rank or an engine: the index of its (first) device among all."""
        if role != "rollout":
            return index
        start = self.trainer_devices if self.rollout_devices else 0
        return start + index * self.engine_tensor_parallel

    def trainer_options(self) -> dict[str, str]:
        """What a trainer rank is told, by the names of TrainerConfig's fields."""
        names = ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel", "data_parallel")
        return {name: str(getattr(self, name)) for name in names}

    def same_devices(self, other: "Layout") -> bool:
        """Whether both have the same devices, divided alike between the two sides."""
        return (self.devices, self.rollout_devices) == (other.devices, other.rollout_devices)

    def same_trainer(self, other: "Layout") -> bool:
        """Whether a gang of the other layout can go on in this one."""
        return self.same_devices(other) and self.trainer_options() == other.trainer_options()

    def same_engines(self, other: "Layout") -> bool:
        """Whether engines of the other layout can go on in this one, though there may be more or fewer of them."""
        return self.same_devices(other) and self.engine_tensor_parallel == other.engine_tensor_parallel

    def __str__(self) -> str:
        sizes = (
            ("TP", self.tensor_parallel),
            ("PP", self.pipeline_parallel),
            ("CP", self.context_parallel),
            ("EP", self.expert_parallel),
            ("DP", self.data_parallel),
        )
        trainer = " ".join(f"{name}{size}" for name, size in sizes if size > 1 or name == "TP")
        engines = f"{self.num_engines} {'engine' if self.num_engines == 1 else 'engines'}"
        return f"trainer {trainer}, {engines} TP{self.engine_tensor_parallel}"


def layout_of(config: Config, stage: StageConfig | None = None) -> Layout:
    """The layout of a stage; None: of the run, as a stage without a layout block has it."""
    wanted = stage.layout if stage is not None else StageLayoutConfig()
    trainer, rollout, whole = config.trainer, config.rollout, config.placement.num_devices
    devices = wanted.devices or whole
    tensor = wanted.tensor_parallel or trainer.tensor_parallel
    pipeline = wanted.pipeline_parallel or trainer.pipeline_parallel
    context = wanted.context_parallel or trainer.context_parallel
    engine_tensor = wanted.engine_tensor_parallel or rollout.tensor_parallel
    ranks = trainer.num_ranks * devices // whole
    on_engines = rollout.num_engines * rollout.tensor_parallel * devices // whole
    apart = config.placement.name == "disaggregated"
    own = config.placement.rollout_devices or rollout.num_engines * rollout.tensor_parallel
    return Layout(
        devices=devices,
        rollout_devices=max(1, own * devices // whole) if apart else 0,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        context_parallel=context,
        expert_parallel=wanted.expert_parallel or trainer.expert_parallel,
        data_parallel=wanted.data_parallel or max(1, ranks // (tensor * pipeline * context)),
        num_engines=wanted.num_engines or max(1, on_engines // engine_tensor),
        engine_tensor_parallel=engine_tensor,
    )


def micro_batch_tokens(config: Config, stage: StageConfig) -> int:
    """Most tokens of a micro-batch in a stage; a longer sequence is a micro-batch of its own."""
    return stage.layout.max_tokens_per_micro_batch or config.trainer.max_tokens_per_micro_batch


def stage_at(config: Config, step_index: int, stage_name: str = "") -> StageConfig | None:
    """The stage whose layout a run has at a step: of an RL step the one named, or its first.

    A warm-up runs in the layout of the stage that follows it, so that nothing is restarted in between. None: there is
    no RL step from there on.
    """
    for index in range(min(step_index, len(config.steps) - 1), len(config.steps)):
        step = config.steps[index]
        if step.kind == "rl" and step.rl.stages:
            named = [stage for stage in step.rl.stages if stage.name == stage_name]
            return named[0] if named else step.rl.stages[0]
    return None


def has_device_counts(config: Config) -> bool:
    """Whether any stage says how many devices it wants."""
    return any(stage.layout.devices for step in config.steps if step.kind == "rl" for stage in step.rl.stages)
