"""The run file: one typed schema that every process reads resolved. See docs/configuration.md (generated)."""

from dataclasses import dataclass

from crescendo.common.config.fields import setting
from crescendo.common.config.reward_models import RewardModelConfig
from crescendo.common.config.rl import AdamWConfig, LearningRateConfig, RlStepConfig

SCHEMA_VERSION = 1


@dataclass
class RunConfig:
    """Identity of the run."""

    name: str = setting("", "name of the run and of its folder", pattern=r"[a-z0-9][a-z0-9-]{0,50}")
    seed: int = setting(0, "seed of data, initial weights and sampling", at_least=0)
    folder: str = setting("runs", "folder that holds the run's folder")
    deterministic: bool = setting(False, "one engine, fixed admission order, seeds by sample: bit-equal resumption")


@dataclass
class ScratchModelConfig:
    """A model made from nothing, in the shape of a Hugging Face architecture."""

    architecture: str = setting("qwen3", "shape", choices=("llama", "qwen2", "qwen3"))
    vocabulary: str = setting("", "characters of a character-level tokenizer; the last is the end of sequence")
    padding: str = setting(".", "the character that pads")
    hidden_size: int = setting(96, "width", at_least=8)
    num_layers: int = setting(3, "transformer layers", at_least=1)
    num_heads: int = setting(3, "attention heads", at_least=1)
    num_kv_heads: int = setting(3, "key/value heads (grouped-query attention)", at_least=1)
    head_dim: int = setting(32, "width of a head", at_least=2)
    ffn_size: int = setting(256, "width of the feed-forward layer", at_least=8)
    max_positions: int = setting(256, "longest sequence", unit="tokens", at_least=8)
    rope_base: float = setting(10000.0, "base of the rotary embedding", above=1)
    tie_embeddings: bool = setting(True, "share input and output embeddings")


@dataclass
class ModelConfig:
    """The policy that the run starts from."""

    source: str = setting("", "`scratch`, a folder in Hugging Face format, or a hub name")
    revision: str = setting("", "hub revision; empty is the default branch")
    dtype: str = setting("float32", "type of weights in engine and trainer", choices=("float32", "bfloat16"))
    scratch: ScratchModelConfig = setting(ScratchModelConfig, "shape, if source is scratch")


@dataclass
class DataSourceConfig:
    """Where prompts come from. Columns name the data set's columns for our fields."""

    name: str = setting("jsonl", "kind of source", choices=("hub", "jsonl", "parquet", "task"))
    path: str = setting("", "file, or hub name; for a task its name (clock_sum, or reasoning_gym/<name>)")
    subset: str = setting("", "hub: configuration of the data set")
    split: str = setting("train", "hub: split")
    columns: dict[str, str] = setting(dict, "our field (question, answer, difficulty, domain, id) to their column")
    answer_after: str = setting("", "the gold answer is what follows this marker in the answer column")
    domain: str = setting("math", "domain of rows that name none; selects the reward chain")
    num_prompts: int = setting(0, "rows to use; 0 is all; for a task, rows to make", at_least=0)
    options: dict[str, str] = setting(dict, "parameters of a task")
    metadata: dict[str, str] = setting(
        dict, "what scorers read besides the answer (schema, choices, tools, ...) to its column; see docs/rewards.md"
    )
    seed: int = setting(0, "seed of a task's rows", at_least=0)


@dataclass
class DataConfig:
    """Prompts for training and validation."""

    train: DataSourceConfig = setting(DataSourceConfig, "prompts to train on")
    validation: DataSourceConfig = setting(DataSourceConfig, "held-out prompts")
    system_prompt: str = setting("", "system message, if the chat template is used")
    template: str = setting("{question}", "user message; {question} is replaced")
    chat_template: bool = setting(True, "render with the tokenizer's chat template; false: the message alone")
    max_prompt_tokens: int = setting(2048, "longer prompts are set aside", unit="tokens", at_least=1)
    max_bad_rows: float = setting(0.1, "largest share of rows that may be set aside", at_least=0, at_most=1)


@dataclass
class ScorerConfig:
    """One link of a reward chain."""

    scorer: str = setting("", "name of a scorer, from docs/rewards.md")
    weight: float = setting(1.0, "factor of the raw value in the reward")
    options: dict[str, str] = setting(dict, "parameters of the scorer; see docs/rewards.md")
    from_iteration: int = setting(
        0, "its weight is 0 before this iteration of the run", at_least=0, source="k1.5 section 2.3.3: warm-up"
    )


@dataclass
class RewardsConfig:
    """Reward chains by domain, and rewards over whole groups."""

    chains: dict[str, list[ScorerConfig]] = setting(dict, "scorers by domain")
    group: list[ScorerConfig] = setting(list, "group-wise scorers (length_k15, ...), after the chain")
    models: dict[str, RewardModelConfig] = setting(dict, "remote reward models, by the name that chains use")


@dataclass
class SandboxConfig:
    """Where programs that a model wrote run; below the floor they do not run. See docs/security.md."""

    floor: str = setting(
        "shared-kernel/landlock",
        "weakest boundary (shared-kernel, gvisor, kata) and jail (landlock, namespaces, runsc), with a slash between",
        pattern=r"(shared-kernel|gvisor|kata)/(landlock|namespaces|runsc)",
    )
    jail: str = setting("auto", "`auto`: the strongest that works", choices=("auto", "runsc", "namespaces", "landlock"))
    programs: int = setting(0, "programs at once; 0 is one a core", at_least=0)
    interpreter: str = setting("", "Python that programs run in; empty: the one beneath this environment")


@dataclass
class RewardServiceConfig:
    """Processes that score model output."""

    address: str = setting(
        "", "host:port of a reward service that serves many runs; empty: processes of the run's own, as set up below"
    )
    workers: int = setting(2, "worker processes of the executor", at_least=1)
    item_deadline_s: float = setting(10.0, "wall-clock limit for one response", unit="s", above=0)
    worker_memory_mib: int = setting(1024, "address space of a worker above its start", unit="MiB", at_least=64)
    recycle_after: int = setting(2000, "items after which a worker is replaced", at_least=1)
    regrade_share: float = setting(
        0.01, "share of correct verdicts graded again in a fresh worker", at_least=0, at_most=1
    )
    attempts: int = setting(3, "tries before an item is excluded", at_least=1)
    sandbox: SandboxConfig = setting(SandboxConfig, "where programs run")


@dataclass
class SftStepConfig:
    """Supervised warm-up on responses that the data source demonstrates."""

    steps: int = setting(100, "optimizer steps", at_least=1)
    batch_size: int = setting(32, "examples a step", at_least=1)
    commit_every_steps: int = setting(0, "steps between commits; 0 commits at the end only", unit="steps", at_least=0)
    learning_rate: LearningRateConfig = setting(LearningRateConfig, "schedule")
    optimizer: AdamWConfig = setting(AdamWConfig, "optimizer")
    data: DataSourceConfig = setting(DataSourceConfig, "demonstrations: columns question and response, or a task")


@dataclass
class StepConfig:
    """One step of the run; steps hand each other checkpoints."""

    kind: str = setting("rl", "what the step does", choices=("sft", "rl"))
    sft: SftStepConfig = setting(SftStepConfig, "if kind is sft")
    rl: RlStepConfig = setting(RlStepConfig, "if kind is rl")


@dataclass
class RolloutConfig:
    """Inference engines."""

    engine: str = setting(
        "vllm",
        "implementation; reference: transformers, slow and exact, without vLLM",
        choices=("vllm", "reference", "scripted"),
    )
    num_engines: int = setting(1, "engines", at_least=1)
    tensor_parallel: int = setting(1, "devices an engine", at_least=1)
    max_concurrency: int = setting(256, "trajectories in flight in one engine", at_least=1)
    kv_cache_gib: float = setting(1.0, "CPU: memory for keys and values", unit="GiB", above=0)
    gpu_memory_utilization: float = setting(0.85, "GPU: share of the device's memory", above=0, at_most=1)
    max_batched_tokens: int = setting(4096, "tokens in one engine step", at_least=16)
    enforce_eager: bool = setting(True, "no graph capture or compilation")
    prefix_caching: bool = setting(False, "reuse keys and values of shared prefixes, within a weight version")
    block_size: int = setting(32, "tokens in a cache block", at_least=1)
    threads: int = setting(0, "CPU threads; 0: all cores", at_least=0)
    flush_tokens: int = setting(256, "flush a trajectory to the buffer every so many tokens; 0: at its end", at_least=0)
    flush_s: float = setting(5.0, "and at least so often", unit="s", above=0)
    lease_s: float = setting(60.0, "a claim on a trajectory expires after so long without a flush", unit="s", above=0)
    canary_tolerance: float = setting(
        1e-3, "largest difference of log-probabilities, engine to trainer, that is admitted", above=0
    )
    num_canaries: int = setting(4, "canary sequences at each weight update", at_least=1)


@dataclass
class TrainerConfig:
    """The Megatron-Core gang."""

    tensor_parallel: int = setting(1, "tensor parallel size", at_least=1)
    data_parallel: int = setting(1, "data parallel size", at_least=1)
    pipeline_parallel: int = setting(1, "pipeline parallel size; must divide the model's layers", at_least=1)
    context_parallel: int = setting(1, "ranks that share the positions of each sequence", at_least=1)
    expert_parallel: int = setting(
        1,
        "ranks that share a mixture's experts; must divide data_parallel * context_parallel, and adds no ranks",
        at_least=1,
    )
    recompute: str = setting(
        "none",
        "activations computed again in the backward pass: none, or full: only each layer's input is kept",
        choices=("none", "full"),
    )
    distributed_optimizer: bool = setting(
        False,
        "ranks with the same weights share the optimizer's state",
        source="Rajbhandari et al. (2020), ZeRO stage 1",
    )
    async_checkpoint: bool = setting(False, "copy a checkpoint to host memory and write it during the next rollout")
    threads: int = setting(0, "CPU threads a rank; 0: all cores", at_least=0)
    max_tokens_per_micro_batch: int = setting(8192, "padded or packed tokens in one forward pass", at_least=1)
    weight_channel: str = setting(
        "shm",
        "how weights travel: shm and ipc (GPU to GPU) within a machine, nccl (GPU to GPU, unencrypted) and tcp between "
        "machines, disk by a shared volume",
        choices=("shm", "tcp", "disk", "ipc", "nccl"),
    )

    @property
    def num_ranks(self) -> int:
        """Processes of the gang."""
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel * self.data_parallel


@dataclass
class BufferConfig:
    """The Redis or Valkey that holds the experience."""

    name: str = setting(
        "embedded", "embedded: a Valkey of the run's own; external: by URL", choices=("embedded", "external")
    )
    url: str = setting("", "external: redis:// or rediss://, with options: ?password_file=FILE&ssl_ca_certs=FILE")
    append_fsync: str = setting(
        "always", "embedded: when the append-only file reaches the disk", choices=("always", "everysec")
    )
    max_memory_mib: int = setting(
        0, "embedded: memory limit; external: most that the run may take; 0 is none", unit="MiB", at_least=0
    )


@dataclass
class ArchiveConfig:
    """Where trajectories go when they are no longer needed for training."""

    enabled: bool = setting(True, "move what was trained on, dropped or abandoned from the buffer to Parquet files")
    url: str = setting("", "folder or fsspec URL, shared by runs if you like; empty: archive/ in the run folder")
    every_s: float = setting(10.0, "pause between two sweeps", unit="s", above=0)
    final_s: float = setting(120.0, "longest wait for the last sweep at the run's end", unit="s", above=0)


@dataclass
class CheckpointStoreConfig:
    """Object storage that holds the run's checkpoints; the run folder then keeps their manifests. See operations.md."""

    url: str = setting("", "folder or fsspec URL, such as s3://bucket/path; empty: checkpoints lie in the run folder")
    credentials: str = setting(
        "", "folder with a file a key (AWS_ACCESS_KEY_ID, ...); empty: environment variables of these names"
    )
    carries_inputs: bool = setting(
        False, "workers have folders of their own: configuration, model and export travel by the store too"
    )


@dataclass
class PlacementConfig:
    """Devices and how trainer and engines share them."""

    device: str = setting("auto", "what computes", choices=("auto", "cpu", "gpu"))
    name: str = setting(
        "colocated",
        "colocated: trainer and engines share devices, which change hands; disaggregated: each has its own",
        choices=("colocated", "disaggregated"),
    )
    num_devices: int = setting(1, "GPUs; on CPU the cores count as one device", at_least=1)
    rollout_devices: int = setting(
        0, "disaggregated: devices, of num_devices, that are the engines' own; 0: as many as they need", at_least=0
    )
    device_memory_gib: float = setting(
        0.0,
        "memory of one GPU, for a run that cannot look because it computes elsewhere: the planner then refuses what "
        "does not fit; 0: not known",
        unit="GiB",
        at_least=0,
    )


@dataclass
class ConsoleConfig:
    """The web page of the run."""

    enabled: bool = setting(True, "serve it on loopback")
    port: int = setting(0, "TCP port; 0 picks a free one", at_least=0, at_most=65535)


@dataclass
class DeadlinesConfig:
    """Longest waits. A wait that passes its limit is an event and an error, never silence."""

    start_s: float = setting(300.0, "a service's start", unit="s", above=0)
    devices_s: float = setting(1800.0, "the devices of a stage, on a cluster that grows", unit="s", above=0)
    rollout_s: float = setting(7200.0, "a rollout phase", unit="s", above=0)
    pause_s: float = setting(60.0, "engines to park their work", unit="s", above=0)
    scoring_s: float = setting(300.0, "scores still missing after the rollout phase", unit="s", above=0)
    train_s: float = setting(7200.0, "a training step", unit="s", above=0)
    sync_s: float = setting(600.0, "publishing and admitting weights", unit="s", above=0)
    checkpoint_s: float = setting(1800.0, "saving or loading a checkpoint", unit="s", above=0)
    call_s: float = setting(30.0, "any other call", unit="s", above=0)
    heartbeat_s: float = setting(30.0, "a process that does not answer so long is dead", unit="s", above=0)
    progress_s: float = setting(
        600.0, "a process that works on something and finishes no part of it so long is dead", unit="s", above=0
    )
    buffer_s: float = setting(
        3600.0, "a buffer that cannot be reached, or a full disk, to be well again; the run waits", unit="s", above=0
    )


@dataclass
class RecoveryConfig:
    """Replacement of lost processes. An attempt counts until the run gets further than it had been."""

    attempts: int = setting(5, "recoveries in a row without progress, then the run ends", at_least=1)
    backoff_s: float = setting(1.0, "wait before the second attempt; doubles with each", unit="s", above=0)
    max_backoff_s: float = setting(60.0, "longest such wait", unit="s", above=0)


@dataclass
class Config:
    """A run file."""

    schema_version: int = setting(SCHEMA_VERSION, "version of this schema", at_least=1, at_most=SCHEMA_VERSION)
    run: RunConfig = setting(RunConfig, "identity")
    model: ModelConfig = setting(ModelConfig, "policy")
    data: DataConfig = setting(DataConfig, "prompts")
    rewards: RewardsConfig = setting(RewardsConfig, "what is rewarded")
    steps: list[StepConfig] = setting(list, "what the run does, in order")
    rollout: RolloutConfig = setting(RolloutConfig, "engines")
    trainer: TrainerConfig = setting(TrainerConfig, "training")
    reward_service: RewardServiceConfig = setting(RewardServiceConfig, "scoring processes")
    buffer: BufferConfig = setting(BufferConfig, "experience buffer")
    archive: ArchiveConfig = setting(ArchiveConfig, "archive of trajectories")
    checkpoint_store: CheckpointStoreConfig = setting(CheckpointStoreConfig, "object storage of checkpoints")
    placement: PlacementConfig = setting(PlacementConfig, "devices")
    console: ConsoleConfig = setting(ConsoleConfig, "web page")
    deadlines: DeadlinesConfig = setting(DeadlinesConfig, "longest waits")
    recovery: RecoveryConfig = setting(RecoveryConfig, "replacement of lost processes")
