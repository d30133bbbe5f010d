"""What an engine needs to know, gathered once from the spec, the resolved run file and the model folder."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from crescendo.common.config.schema import Config
from crescendo.common.errors import DataError
from crescendo.common.service import ServiceSpec


@dataclass(frozen=True)
class EngineSettings:
    """Settings of one engine; fields as in RolloutConfig where they bear its names.

    max_sequence_tokens: longest prompt and response together; eos_token_ids: what ends a response;
    dummy_weights: start with random weights, since real ones come through UpdateWeights;
    bundles: indices of the placement group's bundles that the workers of a tensor-parallel engine live in; empty: they
    are child processes; device_share: what Ray counts for a worker, of its bundle's GPU.
    """

    model_path: str
    max_sequence_tokens: int
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 0
    seed: int = 0
    deterministic: bool = False
    dummy_weights: bool = False
    tensor_parallel: int = 1
    bundles: tuple[int, ...] = ()
    device_share: float = 1.0
    max_concurrency: int = 256
    kv_cache_gib: float = 1.0
    gpu_memory_utilization: float = 0.85
    max_batched_tokens: int = 4096
    enforce_eager: bool = True
    prefix_caching: bool = False
    block_size: int = 32
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: ServiceSpec, config: Config) -> "EngineSettings":
        """Raises DataError when the model folder has no readable config.json."""
        model = _read_json(Path(spec.model_path) / "config.json")
        rollout = config.rollout
        return cls(
            model_path=spec.model_path,
            max_sequence_tokens=_longest_sequence(config, model),
            vocabulary_size=int(str(model.get("vocab_size", 0))),
            eos_token_ids=_eos_token_ids(Path(spec.model_path), model),
            dtype=config.model.dtype,
            device=spec.device,
            threads=spec.threads or rollout.threads,
            seed=config.run.seed,
            deterministic=config.run.deterministic,
            dummy_weights=spec.options.get("dummy") == "1",
            tensor_parallel=int(spec.options.get("tensor_parallel", rollout.tensor_parallel)),
            bundles=tuple(int(index) for index in spec.options.get("bundles", "").split(",") if index),
            device_share=float(spec.options.get("device_share", "1")),
            max_concurrency=rollout.max_concurrency,
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            max_batched_tokens=rollout.max_batched_tokens,
            enforce_eager=rollout.enforce_eager,
            prefix_caching=rollout.prefix_caching,
            block_size=rollout.block_size,
            options=dict(spec.options),
        )


def _longest_sequence(config: Config, model: dict[str, object]) -> int:
    """The longest prompt and the longest response of any stage, as far as the model's positions go."""
    positions = int(str(model.get("max_position_embeddings", 0))) or None
    responses = [stage.max_response_tokens for step in config.steps if step.kind == "rl" for stage in step.rl.stages]
    wanted = config.data.max_prompt_tokens + max(responses, default=0)
    return min(wanted, positions) if positions and responses else positions or wanted


def _eos_token_ids(folder: Path, model: dict[str, object]) -> tuple[int, ...]:
    generation = folder / "generation_config.json"
    found = _read_json(generation).get("eos_token_id") if generation.exists() else None
    if found is None:
        found = model.get("eos_token_id")
    if found is None:
        return ()
    return tuple(int(str(one)) for one in found) if isinstance(found, list) else (int(str(found)),)


def _read_json(path: Path) -> dict[str, object]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}.",
            field="model.source",
            fix="Give a model folder in Hugging Face format.",
        ) from None
    return loaded if isinstance(loaded, dict) else {}
