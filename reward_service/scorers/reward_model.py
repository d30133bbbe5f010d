"""reward_model: what a reward model over the network says about a span of the response.

The run file describes the model under rewards.models: address, protocol, and whether it answers with a score (classic)
or reasons and ends in a JSON verdict (k1.5's CoT reward model). Asking is done by the reward process
(reward_models/), reading the answer by `reward_model_answer` in a confined worker. Whatever goes wrong on the way is a
fault of the service, never a score.
"""

from dataclasses import dataclass

from crescendo.reward_service.scorers.base import RemoteScorer
from crescendo.reward_service.scorers.spans import SPANS
from crescendo.reward_service.typed_options import option

BOUND = 1e6


@dataclass(frozen=True)
class RewardModelOptions:
    """Options of reward_model."""

    model: str = option("", "name under rewards.models", pattern=r"[a-z0-9][a-z0-9-]{0,62}")
    span: str = option(
        "all",
        "what the model is shown: the whole response, its thinking, or what follows that",
        choices=SPANS,
        source="DeepSeek-R1, section 2.3.4: helpfulness on the summary, harmlessness on everything",
    )


SCORER = RemoteScorer(
    name="reward_model",
    source="Kimi k1.5, section 2.3.5 (classic and CoT reward models); DeepSeek-R1, section 2.3.4 (spans)",
    low=-BOUND,
    high=BOUND,
    options=RewardModelOptions,
)
