"""The memory planner: published parameter counts, monotone estimates, and what it says does not fit."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crescendo.common.config.rl import RlStepConfig, StageConfig, StageLayoutConfig
from crescendo.common.config.schema import Config, StepConfig
from crescendo.common.errors import DataError
from crescendo.common.planner import Machine, Plan, Shape, engine, make_plan
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


def run(response: int, *, micro: int = 8192, dtype: str = "bfloat16", **trainer: Any) -> Config:
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


def test_a_mixture_is_known_by_either_spelling_of_its_experts() -> None:
    renamed = {("num_local_experts" if name == "num_experts" else name): size for name, size in QWEN3_30B_A3B.items()}
    assert Shape.of_config(renamed) == Shape.of_config(QWEN3_30B_A3B)


def test_24k_tokens_of_a_1_5b_model_fit_an_h200_and_not_a_24_gib_card() -> None:
    assert planned(run(24576), 1, 141).problem == ""
    problem = planned(run(24576), 1, 24).problem
    assert problem.startswith("stage long, train: ")
    assert "optimizer" in problem or "gradients" in problem or "activations" in problem


# What to change -----------------------------------------------------------------------------------------


def obeyed(config: Config, fix: str) -> Config:
    """The run after a fix was followed to the letter."""
    changed = copy.deepcopy(config)
    for path, text in re.findall(r"([\w.\[\]]+)=([\w.]+)", fix):
        *parents, last = re.findall(r"\w+", path)
        at: Any = changed
        for name in parents:
            at = at[int(name)] if isinstance(at, list) else getattr(at, name)
        kind = type(getattr(at, last))
        setattr(at, last, text == "true" if kind is bool else kind(text))
    return changed


@pytest.mark.parametrize(
    ("config", "gpus", "gib", "shape", "problem", "fix"),
    [
        (run(8192, micro=65536), 1, 80, QWEN_1_5B, "activations of 65536", "max_tokens_per_micro_batch=10240"),
        (run(24576), 1, 80, QWEN_1_5B, "activations of 26624", "trainer.recompute=full"),
        (run(8192), 8, 80, LLAMA_8B, "optimizer", "trainer.tensor_parallel=4"),
        (
            run(8192),
            1,
            80,
            LLAMA_8B,
            "optimizer",
            "Take 2 GPUs, and set trainer.recompute=full",
        ),
        (run(24576), 16, 80, QWEN3_30B_A3B, "main weights", "trainer.expert_parallel=16"),
        (run(1024, tensor_parallel=16), 8, 141, LLAMA_8B, "take 16 GPUs", "trainer.tensor_parallel=8"),
        (run(512, data_parallel=8), 4, 141, QWEN_1_5B, "take 8 GPUs", "trainer.data_parallel=4"),
    ],
    ids=["micro batch", "recompute", "tensor", "more gpus", "mixture", "too many ranks", "too many replicas"],
)
def test_what_does_not_fit_is_named_with_a_change_after_which_it_fits(
    config: Config, gpus: int, gib: int, shape: dict[str, object], problem: str, fix: str
) -> None:
    made = planned(config, gpus, gib, shape)
    assert problem in made.problem
    assert fix in made.fix
    more = re.match(r"Take (\d+) GPUs", made.fix)
    again = planned(obeyed(config, made.fix), int(more[1]) if more else gpus, gib, shape)
    assert again.problem == ""


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from([QWEN_1_5B, LLAMA_8B, QWEN3_30B_A3B]), st.sampled_from([1, 4, 16, 64]),
    st.sampled_from([24, 80, 141]), st.integers(1024, 65536), st.booleans(), st.sampled_from([64, 512, 2048]),
)  # fmt: skip
def test_every_fix_fits_by_the_planner_itself(
    shape: dict[str, object], gpus: int, gib: int, response: int, asynchronous: bool, host: int
) -> None:
    config = run(response)
    config.trainer.async_checkpoint = asynchronous
    machine = Machine(gpus, gib * GIB, host * GIB)
    made = make_plan(config, Shape.of_config(shape), machine)
    assert bool(made.problem) == bool(made.fix) == any(not phase.fits for phase in made.phases)
    more = re.match(r"Take (\d+) GPUs", made.fix)
    larger, memory = re.search(r"GPUs with (\d+) GiB", made.fix), re.search(r"a machine with (\d+) GiB", made.fix)
    machine = Machine(
        int(more[1]) if more else gpus,
        (int(larger[1]) if larger else gib) * GIB,
        (int(memory[1]) if memory else host) * GIB,
    )
    assert make_plan(obeyed(config, made.fix), Shape.of_config(shape), machine).problem == ""


def test_a_stage_s_own_setting_is_what_is_changed() -> None:
    config = run(8192, recompute="full")
    config.placement.num_devices = 8
    config.steps[0].rl.stages[0].layout = StageLayoutConfig(tensor_parallel=1, data_parallel=1)
    made = planned(config, 8, 80, LLAMA_8B)
    assert "steps[0].rl.stages[0].layout.tensor_parallel=2" in made.fix
    assert planned(obeyed(config, made.fix), 8, 80, LLAMA_8B).problem == ""


def test_shorter_responses_are_the_last_thing_to_be_proposed() -> None:
    config = run(65536, recompute="full")
    made = make_plan(config, Shape.of_config(QWEN_1_5B), Machine(0, None, 48 * GIB))
    assert "max_response_tokens=" in made.fix
    assert make_plan(obeyed(config, made.fix), Shape.of_config(QWEN_1_5B), Machine(0, None, 48 * GIB)).problem == ""


def test_a_machine_without_room_for_what_moves_away_is_refused() -> None:
    made = make_plan(run(1024, tensor_parallel=8), Shape.of_config(LLAMA_8B), Machine(8, None, 64 * GIB))
    assert "moved away" in made.problem
    assert made.fix.startswith("Take a machine with ")


def test_on_cores_everything_is_there_at_once() -> None:
    small = make_plan(run(128, micro=512, dtype="float32"), Shape.of_config(QWEN_1_5B), Machine(0, None, 16 * GIB))
    assert "does not fit; this machine has 16.00 GiB" in small.problem
    assert {phase.name for phase in small.phases} == {"train", "rollout"}


def test_unknown_capacities_refuse_nothing() -> None:
    made = make_plan(run(131072), Shape.of_config(LLAMA_8B), Machine(8))
    assert (made.problem, made.fix) == ("", "")
    assert made.concurrency == {"long": 0}


# Layouts ------------------------------------------------------------------------------------------------


def phase(made: Plan, name: str) -> dict[str, int]:
    found = next(each for each in made.phases if each.name == name)
    return {item.name: item.num_bytes for item in found.items}


def test_disaggregated_devices_hold_one_side_and_nothing_moves_away() -> None:
    config = run(4096)
    config.placement.num_devices = 2
    together = planned(config, 2, 141)
    config.placement.name, config.trainer.weight_channel = "disaggregated", "tcp"
    apart = planned(config, 2, 141)
    assert "engine weights" in phase(together, "publish")
    assert "engine weights" not in phase(apart, "publish")
    assert not any("moved away" in item.name for each in apart.phases for item in each.items)
    assert {each.place for each in apart.phases if each.name == "train"} == {"a trainer's GPU"}


def test_each_stage_is_planned_in_its_own_layout() -> None:
    config = run(1024)
    config.placement.num_devices = 8
    longer = StageConfig(name="longer", max_response_tokens=8192, layout=StageLayoutConfig(tensor_parallel=4))
    config.steps[0].rl.stages.append(longer)
    made = planned(config, 8, 141, LLAMA_8B)
    assert made.layouts == {"long": "trainer TP1, 1 engine TP1", "longer": "trainer TP4, 1 engine TP1"}
    weights = [item.num_bytes for each in made.phases if each.name == "train" for item in each.items[1:2]]
    assert 3.9 < weights[0] / weights[1] < 4


def test_an_asynchronous_checkpoint_s_copy_and_a_gathered_state_are_counted() -> None:
    config = run(1024, distributed_optimizer=True, data_parallel=4)
    config.placement.num_devices = 4
    config.steps[0].rl.algorithm.reset_optimizer = False
    parameters = Shape.of_config(QWEN_1_5B).parameters
    made = planned(config, 4, 141)
    assert phase(made, "checkpoint")["a part of the state, gathered"] == 4 * parameters
    config.trainer.async_checkpoint = True
    host = [each for each in planned(config, 4, 141).phases if each.place == "a machine"]
    copies = [item.num_bytes for each in host for item in each.items if item.name == "checkpoint's copy"]
    assert copies == [12 * parameters]


@pytest.mark.parametrize(("channel", "embeddings", "layers", "copies"), [("tcp", 1, 8, 3), ("nccl", 2, 1, 2)])
@pytest.mark.parametrize("divided", [{"tensor_parallel": 2}, {"expert_parallel": 2, "data_parallel": 2}, {}])
def test_gathered_tensors_pass_through_a_gpu_and_stay_on_the_host(
    channel: str, embeddings: int, layers: int, copies: int, divided: dict[str, int]
) -> None:
    made = planned(run(1024, weight_channel=channel, **divided), 2, 141, QWEN3_30B_A3B)
    shape = Shape.of_config(QWEN3_30B_A3B)
    layer = shape.hidden_size * max(shape.ffn_size, shape.query_size)
    kept = [item.num_bytes for item in made.phases[-1].items if item.name.endswith("the weights in the channel")]
    if divided:
        assert phase(made, "publish")["gathered tensors"] == 2 * (
            embeddings * shape.embedding_parameters + layers * layer
        )
    else:
        assert "gathered tensors" not in phase(made, "publish")
    in_place = channel == "nccl" and not divided
    assert kept == ([] if in_place else [copies * 2 * shape.parameters])


LENGTHS = st.integers(64, 40_000)
SIZES = st.sampled_from([1, 2, 4, 8])


@given(LENGTHS, LENGTHS, st.sampled_from(["float32", "bfloat16"]), st.sampled_from(["none", "full"]), SIZES)
def test_more_tokens_never_need_less(one: int, other: int, dtype: str, recompute: str, context: int) -> None:
    few, many = sorted((one, other))
    for shape in map(Shape.of_config, (LLAMA_8B, QWEN3_30B_A3B)):
        less, more = (Training(shape, dtype, n, n, context_parallel=context, recompute=recompute) for n in (few, many))
        assert formulas.activations(less) <= formulas.activations(more)
        assert formulas.working(less) >= formulas.activations(less)
        one_chunk = formulas.MAX_LOGITS // less.vocabulary_rows  # which keeps its probabilities too: memory.head
        if not less.own_scored <= one_chunk < more.own_scored:
            assert formulas.peak(less) <= formulas.peak(more)


@given(
    LENGTHS, SIZES, SIZES, st.sampled_from(["float32", "bfloat16"]), st.booleans(),
    st.sampled_from(["tensor_parallel", "pipeline_parallel", "context_parallel", "data_parallel"]),
)  # fmt: skip
def test_more_devices_never_need_more_on_each(
    tokens: int, narrow: int, wide: int, dtype: str, distributed: bool, dimension: str
) -> None:
    less, more = sorted((narrow, wide))
    parts: list[Callable[[Training], int]] = [formulas.weights, formulas.optimizer, formulas.gradients]
    if dimension != "pipeline_parallel":  # stages hold several micro-batches, and tied weights twice
        parts += [formulas.activations, formulas.working]
    made = [
        Training(
            Shape.of_config(LLAMA_8B), dtype, tokens, tokens, distributed=distributed, on_gpu=True, **{dimension: n}
        )
        for n in (less, more)
    ]
    if dimension == "context_parallel" and less == 1:  # gathered keys and values cost a little when little is divided
        parts = parts[:3]
    assert all(part(made[1]) <= part(made[0]) for part in parts)


@given(LENGTHS, st.sampled_from(["float32", "bfloat16"]))
def test_recomputing_and_sharing_save_what_they_promise(tokens: int, dtype: str) -> None:
    shape = Shape.of_config(QWEN3_30B_A3B)
    plain = Training(shape, dtype, tokens, tokens, data_parallel=8, expert_parallel=4)
    assert formulas.activations(replace(plain, recompute="full")) < formulas.activations(plain)
    shared = replace(plain, distributed=True)
    assert shared.state_parameters == -(-plain.dense_parameters // 8) + -(-plain.expert_parameters // 2)
    assert formulas.gradients(shared) == formulas.gradients(plain)


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4, 8]), st.sampled_from([LLAMA_8B, QWEN_1_5B, QWEN3_30B_A3B]))
def test_ranks_together_hold_the_model(pipeline: int, divided: int, config: dict[str, object]) -> None:
    shape = Shape.of_config(config)
    name = "expert_parallel" if shape.num_experts else "tensor_parallel"
    stages = [
        Training(shape, "float32", 64, 64, pipeline_parallel=pipeline, stage=stage, **{name: divided})
        for stage in range(pipeline)
    ]
    if shape.num_experts:
        held = sum(each.dense_parameters + (each.expert_parameters * divided or 0) for each in stages)
    else:
        vectors = shape.num_layers * shape.layer_vectors + shape.hidden_size
        held = sum(each.parameters for each in stages) * divided - (divided - 1) * vectors
    twice = shape.embedding_parameters if shape.tie_embeddings and pipeline > 1 else 0
    assert shape.parameters + twice <= held <= (shape.parameters + twice) * 1.001


def test_an_engine_s_weights_and_cache_are_divided() -> None:
    shape = Shape.of_config(LLAMA_8B)
    assert engine.engine_weights(shape, "bfloat16", 1) == 2 * shape.parameters
    assert 3.9 < engine.engine_weights(shape, "bfloat16", 1) / engine.engine_weights(shape, "bfloat16", 4) < 4
    assert engine.kv_cache_per_token(shape, "bfloat16", 16) == engine.kv_cache_per_token(shape, "bfloat16", 8)
