"""Remote reward models, asked by the reward process: the executor has no egress, and no key.

    item with a `reward_model` link --> ModelScoring --> RewardModel --> HTTP or gRPC --> the model's server
                                            |                 `-- cache, retries, limit on calls at once
                                            `--> Dispatcher --> executor: the other links, and reading the answer

Model text is opaque here: a span is cut out of it by a search for one mark, and it is put into a request as it is.
What the server answers goes to the executor unread, as an item for `reward_model_answer`. docs/decisions/0015 tells
why. Whatever goes wrong is a fault of the item, never a score.
"""

from crescendo.reward_service.reward_models.models import RewardModels, parse_models
from crescendo.reward_service.reward_models.scoring import ModelScoring

__all__ = ["ModelScoring", "RewardModels", "parse_models"]
