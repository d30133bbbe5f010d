"""The curriculum of a run: draws prompts for an iteration and learns their success rates.

Called by the controller's loop: `draw` at the start of an iteration, `record` when a group has been scored,
`to_dict` in each commit. A draw depends on the config, the seed, the branch, the iteration and the success rates
alone, so that a resumed run draws what the interrupted one would have drawn. The order `epoch` depends on how many
prompts the iterations before have got instead, whatever the branch: a rollback does not hand a prompt out again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crescendo.common.config.rl import CurriculumConfig
from crescendo.common.errors import CheckpointError, DataError, RequestError
from crescendo.controller.curriculum.orders import Indices, eligible_prompts, rank_by_difficulty

_STATE_VERSION = 1


@dataclass(frozen=True)
class PromptRecord:
    """What is known of a tried prompt: how many groups, and its smoothed success rate (0..1)."""

    num_groups: int
    success_rate: float


@dataclass(frozen=True)
class EpochPlace:
    """Where the order `epoch` stands: iteration got num_drawn prompts, after num_before of all iterations before it."""

    iteration: int = -1
    num_before: int = 0
    num_drawn: int = 0


class Curriculum:
    """Draws prompt indices by order and priority."""

    def __init__(self, config: CurriculumConfig, difficulties: Sequence[float | None]) -> None:
        """difficulties: one a prompt, 0 easy .. 1 hard, None unknown. Raises DataError when there is none."""
        if not difficulties:
            raise DataError(
                "the training data has no usable prompt.",
                field="data.train",
                fix="See quarantine.jsonl in the run folder for the rows set aside, with their reasons.",
            )
        self._config = config
        self._ranking = rank_by_difficulty(difficulties)
        self._records: dict[int, PromptRecord] = {}
        self._place = EpochPlace()

    @property
    def num_prompts(self) -> int:
        """Size of the data set."""
        return len(self._ranking)

    @property
    def num_tried(self) -> int:
        """Prompts with at least one recorded group."""
        return len(self._records)

    def eligible(self, iteration: int, num_prompts: int = 1) -> Indices:
        """Indices that the order allows in an iteration, easy to hard, at least num_prompts if there are so many."""
        return eligible_prompts(self._config, self._ranking, iteration, num_prompts)

    def success_rate(self, index: int) -> float:
        """The smoothed success rate of a prompt; initial_rate while it has not been tried."""
        record = self._records.get(index)
        return self._config.prioritized.initial_rate if record is None else record.success_rate

    def weight(self, index: int) -> float:
        """Relative chance of a prompt: max(floor, 1 - s) when prioritized (Kimi k1.5, section 2.3.4), else 1."""
        if not self._config.prioritized.enabled:
            return 1.0
        return max(self._config.prioritized.floor, 1.0 - self.success_rate(index))

    def draw(self, iteration: int, num_prompts: int, branch: int = 0) -> list[int]:
        """Prompt indices for an iteration, [num_prompts], in the order of drawing.

        Without replacement; a data set smaller than num_prompts is gone through several times, each prompt equally
        often up to one. Raises RequestError when num_prompts is negative.
        """
        if num_prompts < 0:
            raise RequestError(f"num_prompts is {num_prompts}; it must be at least 0.", field="num_prompts")
        if self._config.order == "epoch":
            return self._next_of_epoch(iteration, num_prompts)
        random = np.random.default_rng([self._config.seed, branch, iteration])
        pool = self.eligible(iteration, num_prompts)
        weights = np.array([self.weight(int(index)) for index in pool], dtype=np.float64)
        drawn: list[int] = []
        while len(drawn) < num_prompts:
            order = _weighted_order(weights, random)
            drawn += [int(index) for index in pool[order][: num_prompts - len(drawn)]]
        return drawn

    def _next_of_epoch(self, iteration: int, num_prompts: int) -> list[int]:
        """The prompts that follow; the same ones when an iteration asks again."""
        place = self._place
        before = place.num_before if iteration == place.iteration else place.num_before + place.num_drawn
        self._place = EpochPlace(iteration, before, num_prompts)
        drawn: list[int] = []
        while len(drawn) < num_prompts:
            epoch, first = divmod(before + len(drawn), self.num_prompts)
            order = np.random.default_rng([self._config.seed, epoch]).permutation(self.num_prompts)
            drawn += [int(index) for index in order[first : first + num_prompts - len(drawn)]]
        return drawn

    def record(self, index: int, success_rate: float) -> None:
        """Takes in a scored group's share of correct answers (0..1). Raises RequestError outside these bounds."""
        if not 0 <= index < self.num_prompts:
            raise RequestError(f"prompt index is {index}; it must be below {self.num_prompts}.", field="index")
        if not (math.isfinite(success_rate) and 0.0 <= success_rate <= 1.0):
            raise RequestError(f"success_rate is {success_rate}; it must lie in 0..1.", field="success_rate")
        newest = self._config.prioritized.smoothing
        smoothed = (1.0 - newest) * self.success_rate(index) + newest * success_rate
        tried = self._records[index].num_groups if index in self._records else 0
        self._records[index] = PromptRecord(tried + 1, smoothed)

    def to_dict(self) -> dict[str, Any]:
        """State for a commit, as JSON: [groups, success rate] of the tried prompts only."""
        tried = {str(index): [item.num_groups, item.success_rate] for index, item in sorted(self._records.items())}
        return {
            "version": _STATE_VERSION, "num_prompts": self.num_prompts, "tried": tried, "epoch": asdict(self._place)
        }  # fmt: skip

    @classmethod
    def from_dict(
        cls, config: CurriculumConfig, difficulties: Sequence[float | None], state: Mapping[str, Any]
    ) -> "Curriculum":
        """Restores a commit's state; raises CheckpointError when it belongs to other data or is damaged."""
        curriculum = cls(config, difficulties)
        try:
            version, num_prompts, tried = state["version"], state["num_prompts"], state["tried"]
            place = EpochPlace(**state.get("epoch", {}))
            records = {int(index): PromptRecord(int(item[0]), float(item[1])) for index, item in tried.items()}
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CheckpointError(
                f"the curriculum's state is damaged: {error!r}.", field="curriculum", fix="Resume from an older commit."
            ) from error
        if version != _STATE_VERSION or num_prompts != curriculum.num_prompts:
            raise CheckpointError(
                f"the commit's curriculum is for {num_prompts} prompts (state version {version}); "
                f"the data has {curriculum.num_prompts} (version {_STATE_VERSION}).",
                field="data.train",
                fix="Resume with the data set that the run was started with.",
            )
        bad = [index for index in records if not 0 <= index < num_prompts]
        if bad:
            raise CheckpointError(
                f"the curriculum's state names prompt {bad[0]} of {num_prompts}.",
                field="curriculum",
                fix="Resume from an older commit.",
            )
        curriculum._records, curriculum._place = records, place
        return curriculum


def _weighted_order(weights: npt.NDArray[np.float64], random: np.random.Generator) -> Indices:
    """A random permutation in which weight decides who comes first.

    Sorting log(weight) + Gumbel noise downwards draws without replacement in proportion to the weights
    (Efraimidis and Spirakis, 2006; Yellott, 1977). Weights of zero come last, in random order.
    """
    # random() may return 0, whose logarithm is infinite; its complement lies in (0, 1].
    noise = -np.log(-np.log1p(-random.random(len(weights))) + np.finfo(np.float64).tiny)
    zero = weights <= 0
    keys = np.log(np.where(zero, 1.0, weights)) + noise
    order: Indices = np.lexsort((-keys, zero)).astype(np.int64)
    return order
