"""From the run file's chains to what goes over the wire: domain, stage, warm-up, options, tokens."""

import pytest

from crescendo.common.config.rl import StageConfig
from crescendo.common.config.schema import Config, RewardsConfig, ScorerConfig
from crescendo.controller.loop.scoring import chain_of, reads_tokens, scorer_specs

MATH = ScorerConfig(scorer="math_answer", options={"extract": "boxed"})
LENGTH = ScorerConfig(scorer="length_k15", weight=0.2, from_iteration=10)
OVERLONG = ScorerConfig(scorer="soft_overlong")
CONFIG = Config(rewards=RewardsConfig(chains={"math": [MATH], "chat": [ScorerConfig(scorer="format")]}))


def test_a_prompts_domain_selects_its_chain() -> None:
    assert [spec.name for spec in chain_of(CONFIG, "math", None)] == ["math_answer"]
    assert [spec.name for spec in chain_of(CONFIG, "chat", None)] == ["format"]
    assert dict(chain_of(CONFIG, "math", None)[0].options) == {"extract": "boxed"}


@pytest.mark.parametrize(("iteration", "weight"), [(0, 0.0), (9, 0.0), (10, 0.2), (11, 0.2), (None, 0.2)])
def test_a_link_has_no_weight_while_it_warms_up(iteration: int | None, weight: float) -> None:
    (spec,) = scorer_specs([LENGTH], StageConfig(), iteration)
    assert spec.weight == weight


def test_a_stages_weight_goes_before_the_links_and_after_the_warm_up() -> None:
    stage = StageConfig(reward_weights={"length_k15": 0.7})
    assert scorer_specs([LENGTH], stage, 10)[0].weight == 0.7
    assert scorer_specs([LENGTH], stage, 9)[0].weight == 0.0


@pytest.mark.parametrize("max_tokens", [8192, 24576])
def test_a_stage_gives_its_limit_to_the_rewards_that_follow_it(max_tokens: int) -> None:
    (spec,) = scorer_specs([OVERLONG], StageConfig(max_response_tokens=max_tokens))
    assert dict(spec.options) == {"max_tokens": str(max_tokens)}


def test_tokens_travel_only_where_they_are_read() -> None:
    assert not reads_tokens(scorer_specs([MATH], None))
    assert reads_tokens(scorer_specs([MATH, ScorerConfig(scorer="repetition_penalty")], None))
