"""The memory planner: published parameter counts, monotone estimates, and what it says does not fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.config.rl import RlStepConfig, StageConfig
from crescendo.common.config.schema import Config, StepConfig
from crescendo.common.errors import DataError
from crescendo.common.planner import Machine, Plan, Shape, make_plan
from crescendo.common.planner import memory as formulas
from crescendo.common.planner.memory import Training

GIB = 2**30
QWEN_1_5B = {
    "model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
}  # fmt: skip
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "published"),
    [(QWEN_1_5B, 1_543_714_304), (LLAMA_8B, 8_030_261_248), (QWEN3_30B_A3B, 30_532_122_624)],
    ids=["qwen2.5-1.5b", "llama-3-8b", "qwen3-30b-a3b"],
)
def test_parameters_are_those_of_the_published_models(config: dict[str, object], published: int) -> None:
    assert Shape.of_config(config).parameters == published


def test_a_config_without_its_sizes_is_bad_input() -> None:
    with pytest.raises(DataError, match="hidden_size"):
        Shape.of_config({"num_attention_heads": 4})


def run(response: int, *, micro: int = 8192, dtype: str = "bfloat16", **trainer: int) -> Config:
    config = Config()
    config.model.dtype = dtype
    config.trainer.max_tokens_per_micro_batch = micro
    for name, value in trainer.items():
        setattr(config.trainer, name, value)
    stage = StageConfig(name="long", max_response_tokens=response)
    config.steps = [StepConfig(kind="rl", rl=RlStepConfig(stages=[stage]))]
    return config


def planned(config: Config, gpus: int, gpu_gib: int, shape: dict[str, object] = QWEN_1_5B) -> Plan:
    return make_plan(config, Shape.of_config(shape), Machine(gpus, gpu_gib * GIB, 512 * GIB))


def test_24k_tokens_of_a_1_5b_model_fit_an_h200_and_not_a_24_gib_card() -> None:
    assert planned(run(24576), 1, 141).problem == ""
    problem = planned(run(24576), 1, 24).problem
    assert problem.startswith("stage long, train: ")
    assert "optimizer" in problem or "gradients" in problem or "activations" in problem


def test_the_first_thing_that_does_not_fit_is_named_with_what_to_change() -> None:
    activations = planned(run(8192, micro=65536), 1, 80).problem
    assert "activations" in activations
    assert "max_tokens_per_micro_batch" in activations
    state = planned(run(8192), 1, 70, LLAMA_8B).problem
    assert "gradients" in state
    assert "tensor_parallel above 1" in state
    assert planned(run(8192, tensor_parallel=8), 8, 80, LLAMA_8B).problem == ""


def test_a_machine_without_room_for_what_moves_away_is_refused() -> None:
    made = make_plan(run(1024, tensor_parallel=8), Shape.of_config(LLAMA_8B), Machine(8, None, 64 * GIB))
    assert "moved away" in made.problem


def test_on_cores_everything_is_there_at_once() -> None:
    small = make_plan(run(128, micro=512, dtype="float32"), Shape.of_config(QWEN_1_5B), Machine(0, None, 16 * GIB))
    assert "does not fit; this machine has 16.00 GiB" in small.problem
    assert {phase.name for phase in small.phases} == {"train", "rollout"}


def test_unknown_capacities_refuse_nothing() -> None:
    made = make_plan(run(131072), Shape.of_config(LLAMA_8B), Machine(8))
    assert made.problem == ""
    assert made.concurrency == {"long": 0}


@given(
    st.integers(64, 40_000), st.integers(64, 40_000), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["float32", "bfloat16"]),
)  # fmt: skip
def test_more_tokens_never_need_less_and_more_devices_never_more(
    one: int, other: int, narrow: int, wide: int, dtype: str
) -> None:
    shape = Shape.of_config(LLAMA_8B)
    few, many = sorted((one, other))
    less, more = sorted((narrow, wide))
    base = Training(shape, dtype, few, few, less)
    assert formulas.working(base) <= formulas.working(Training(shape, dtype, many, many, less))
    split = Training(shape, dtype, few, few, more)
    for part in (formulas.weights, formulas.optimizer, formulas.gradients, formulas.activations, formulas.working):
        assert part(split) <= part(base)
    assert formulas.working(base) >= formulas.activations(base)
