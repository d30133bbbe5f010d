"""Which prompts an iteration draws: an order over difficulty, and priorities by success rate on top of it."""

from crescendo.controller.curriculum.curriculum import Curriculum
from crescendo.controller.curriculum.orders import ORDERS, eligible_prompts

__all__ = ["ORDERS", "Curriculum", "eligible_prompts"]
