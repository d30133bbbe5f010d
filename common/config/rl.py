"""Config of an RL step: algorithm, curriculum, stages and their gates."""

from dataclasses import dataclass

from crescendo.common.config.fields import setting


@dataclass
class LearningRateConfig:
    """A learning-rate schedule: linear warm-up, a hold at the peak, then a decay."""

    peak: float = setting(1e-6, "learning rate after warm-up", above=0)
    warmup_steps: int = setting(0, "optimizer steps of linear warm-up", unit="steps", at_least=0)
    schedule: str = setting("constant", "what follows the hold", choices=("constant", "linear", "cosine"))
    final_fraction: float = setting(0.1, "learning rate at the end of the decay, of the peak", at_least=0, at_most=1)
    hold_steps: int = setting(0, "steps at the peak before the decay", unit="steps", at_least=0)
    decay_steps: int = setting(0, "length of the decay; 0 means up to the last step", unit="steps", at_least=0)


@dataclass
class AdamWConfig:
    """AdamW (Loshchilov and Hutter, 2019) with global gradient-norm clipping."""

    beta1: float = setting(0.9, "decay of the first moment", at_least=0, at_most=0.9999)
    beta2: float = setting(0.95, "decay of the second moment", at_least=0, at_most=0.99999)
    epsilon: float = setting(1e-8, "added to the denominator", above=0)
    weight_decay: float = setting(0.0, "decoupled weight decay", at_least=0)
    clip_grad_norm: float = setting(1.0, "largest global gradient norm; 0 switches clipping off", at_least=0)


@dataclass
class MirrorDescentConfig:
    """k1.5's objective: the reference is the iterate itself."""

    tau: float = setting(
        1.0, "weight of the squared log-ratio to the iterate", above=0, source="k1.5 section 2.3.2, eq. 3"
    )
    aggregation: str = setting(
        "token_mean",
        "how per-trajectory losses are averaged: over trained tokens, over trajectories, or summed over a constant",
        choices=("token_mean", "sequence_mean"),
    )


@dataclass
class GrpoConfig:
    """Group relative policy optimization, per token, with asymmetric clipping."""

    clip_low: float = setting(0.2, "ratio is clipped below 1 - clip_low", above=0, at_most=1)
    clip_high: float = setting(0.28, "ratio is clipped above 1 + clip_high", above=0, source="DAPO: clip-higher")
    normalize_std: bool = setting(True, "divide advantages by the group's standard deviation (false: Dr. GRPO)")
    aggregation: str = setting(
        "token_mean",
        "token_mean (DeepScaleR), sequence_token_mean (GRPO paper) or sequence_sum_constant (Dr. GRPO)",
        choices=("token_mean", "sequence_token_mean", "sequence_sum_constant"),
    )


@dataclass
class AlgorithmConfig:
    """The policy-gradient objective."""

    name: str = setting("mirror_descent", "which objective", choices=("mirror_descent", "grpo"))
    mirror_descent: MirrorDescentConfig = setting(MirrorDescentConfig, "parameters of mirror_descent")
    grpo: GrpoConfig = setting(GrpoConfig, "parameters of grpo")
    reset_optimizer: bool = setting(
        True, "forget the optimizer state at the start of each iteration", source="k1.5 section 2.3.2"
    )
    num_mini_batches: int = setting(1, "optimizer steps that an iteration's batch is split into", at_least=1)
    old_segments: str = setting(
        "train",
        "tokens made by older weights: train with truncated importance sampling, or mask them",
        choices=("train", "mask"),
    )
    importance_cap: float = setting(2.0, "truncation of the importance weight of older segments", above=0)


@dataclass
class PrioritizedConfig:
    """Sampling in proportion to 1 - success rate (k1.5 section 2.3.4)."""

    enabled: bool = setting(False, "weight prompts by 1 - s, s their smoothed success rate")
    smoothing: float = setting(0.5, "weight of the newest group in s", above=0, at_most=1)
    initial_rate: float = setting(0.0, "s of a prompt not tried yet", at_least=0, at_most=1)
    floor: float = setting(0.05, "smallest weight, so that solved prompts still return", at_least=0, at_most=1)


@dataclass
class CurriculumConfig:
    """Which prompts an iteration draws; the order and the priority compose."""

    order: str = setting(
        "uniform",
        "uniform; easy_to_hard: a window over difficulty that moves to the hard end; uniform_then_hard; epoch: every "
        "prompt once in a random order, then all again in another",
        choices=("uniform", "easy_to_hard", "uniform_then_hard", "epoch"),
    )
    hard_from_iteration: int = setting(
        24, "uniform_then_hard: first iteration that draws hard prompts only", at_least=0, source="k1.5 figure 9"
    )
    hard_fraction: float = setting(0.5, "uniform_then_hard: the hardest share of the prompts", above=0, at_most=1)
    ramp_iterations: int = setting(50, "easy_to_hard: iterations until every prompt may be drawn", at_least=1)
    start_fraction: float = setting(0.25, "easy_to_hard: share of easiest prompts at the start", above=0, at_most=1)
    prioritized: PrioritizedConfig = setting(PrioritizedConfig, "weights on top of the order")
    seed: int = setting(0, "seed of the draws", at_least=0)


@dataclass
class SamplingConfig:
    """The distribution that rollouts sample; log-probabilities are reported under it."""

    temperature: float = setting(1.0, "softmax temperature", above=0, at_most=10)
    top_p: float = setting(1.0, "nucleus; 1 samples from the whole distribution", above=0, at_most=1)


@dataclass
class GateConfig:
    """When a stage is left, by smoothed metrics, and which checkpoint the next one starts from."""

    name: str = setting(
        "plateau",
        "length_turn: length rises, validation flat or falling, clip ratio high; plateau: validation and reward flat; "
        "step: a fixed number of iterations; manual: `crescendo promote`",
        choices=("length_turn", "plateau", "step", "manual"),
    )
    min_iterations: int = setting(0, "no decision before so many iterations in the stage", at_least=0)
    window: int = setting(5, "iterations that slopes are fitted over", unit="iterations", at_least=2)
    smoothing: float = setting(0.3, "weight of the newest value in the moving averages", above=0, at_most=1)
    min_clip_ratio: float = setting(
        0.06, "length_turn: least share of responses cut by the context", at_least=0, at_most=1, source="DeepScaleR"
    )
    max_accuracy_slope: float = setting(
        0.002, "validation counts as flat up to this slope", unit="accuracy per iteration", at_least=0
    )
    max_reward_slope: float = setting(
        0.002, "reward counts as flat up to this slope", unit="1 per iteration", at_least=0
    )
    min_length_slope: float = setting(
        0.0, "length_turn: length counts as rising above this slope", unit="tokens per iteration"
    )
    patience: int = setting(1, "iterations in a row that the rule must hold", at_least=1)
    iterations: int = setting(100, "step: iterations in the stage", at_least=1)
    rollback: str = setting(
        "last",
        "checkpoint that the next stage starts from",
        choices=("last", "best", "length_minimum"),
    )


@dataclass
class StageLayoutConfig:
    """Devices and parallelism of a stage; empty values keep the run's."""

    devices: int = setting(
        0, "devices of the stage, of placement.num_devices; ranks and engines follow; 0: all", at_least=0
    )
    tensor_parallel: int = setting(0, "trainer's tensor parallel size; 0 keeps it", at_least=0)
    pipeline_parallel: int = setting(0, "trainer's pipeline parallel size; 0 keeps it", at_least=0)
    context_parallel: int = setting(0, "trainer's context parallel size; 0 keeps it", at_least=0)
    expert_parallel: int = setting(0, "trainer's expert parallel size; 0 keeps it", at_least=0)
    data_parallel: int = setting(0, "trainer's data parallel size; 0: what is left of the ranks", at_least=0)
    max_tokens_per_micro_batch: int = setting(0, "tokens in one forward pass of the trainer; 0 keeps it", at_least=0)
    num_engines: int = setting(0, "engines; 0: as many as the engines' devices allow", at_least=0)
    engine_tensor_parallel: int = setting(0, "engines' tensor parallel size; 0 keeps it", at_least=0)


@dataclass
class StageConfig:
    """A span of iterations with one context length."""

    name: str = setting("", "name, unique in the run", pattern=r"[a-z0-9][a-z0-9-]{0,30}")
    max_response_tokens: int = setting(8192, "limit on a whole response", unit="tokens", at_least=1)
    token_budget: int = setting(
        0,
        "tokens a trajectory may get in one iteration; 0: no limit",
        unit="tokens",
        at_least=0,
        source="k1.5 section 2.6.2: partial rollouts",
    )
    prompts_per_iteration: int = setting(128, "groups opened in an iteration", at_least=1)
    samples_per_prompt: int = setting(8, "k, trajectories in a group", at_least=1)
    sampling: SamplingConfig = setting(SamplingConfig, "how tokens are drawn")
    truncated: str = setting(
        "zero",
        "what training makes of responses cut by the limit: reward zero, left out, or the reward that scorers give",
        choices=("zero", "mask", "score"),
    )
    reward_weights: dict[str, float] = setting(dict, "weights by scorer name, in place of the chain's")
    gate: GateConfig = setting(GateConfig, "when the stage is left")
    max_iterations: int = setting(1000, "iterations after which on_max_iterations applies", at_least=1)
    on_max_iterations: str = setting("stop", "what happens then", choices=("promote", "stop", "fail"))
    layout: StageLayoutConfig = setting(StageLayoutConfig, "devices and parallelism")


@dataclass
class PartialConfig:
    """Partial rollouts: long responses are continued in later iterations."""

    max_spans: int = setting(3, "iterations a trajectory may span, then it is dropped", at_least=1)
    train_ratio: float = setting(
        1.0, "share of the iteration's groups that must have ended before training starts", above=0, at_most=1
    )


@dataclass
class RepetitionConfig:
    """Ends responses that loop: the last n-gram, for some n, occurs count times back to back in the window."""

    enabled: bool = setting(True, "whether the rule applies")
    ngram_tokens: int = setting(64, "longest period that is looked for", unit="tokens", at_least=1)
    window_tokens: int = setting(1024, "tokens that are looked at", unit="tokens", at_least=2)
    count: int = setting(8, "repetitions that end the response", at_least=2)
    penalty: float = setting(0.0, "subtracted from the reward of such a response", at_least=0)


@dataclass
class ValidationConfig:
    """Fixed held-out prompts, outside the ledger."""

    every_iterations: int = setting(5, "iterations between validations", at_least=1)
    num_prompts: int = setting(128, "held-out prompts", at_least=1)
    samples_per_prompt: int = setting(1, "responses a prompt; accuracy is their mean", at_least=1)
    temperature: float = setting(1.0, "softmax temperature; 0 is greedy", at_least=0)


@dataclass
class CheckpointConfig:
    """When a run commits. A commit is a checkpoint with a manifest."""

    every_iterations: int = setting(10, "iterations between commits", at_least=1)
    keep: int = setting(3, "newest commits that are kept; those a gate may return to are kept besides", at_least=1)


@dataclass
class RlStepConfig:
    """Reinforcement learning in stages."""

    algorithm: AlgorithmConfig = setting(AlgorithmConfig, "objective")
    learning_rate: LearningRateConfig = setting(LearningRateConfig, "schedule over optimizer steps of the whole step")
    optimizer: AdamWConfig = setting(AdamWConfig, "optimizer")
    curriculum: CurriculumConfig = setting(CurriculumConfig, "which prompts are drawn")
    stages: list[StageConfig] = setting(list, "the stages, in order")
    partial: PartialConfig = setting(PartialConfig, "partial rollouts")
    repetition: RepetitionConfig = setting(RepetitionConfig, "repetition stop")
    validation: ValidationConfig = setting(ValidationConfig, "held-out accuracy")
    checkpoints: CheckpointConfig = setting(CheckpointConfig, "commits")
    max_staleness: int = setting(0, "weight versions that rollouts may lag behind; 0 is synchronous", at_least=0)
