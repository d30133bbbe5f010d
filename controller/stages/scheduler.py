"""The stage scheduler: which stage a run is in, when it leaves it, and where the next one starts from.

Called by the controller's loop. After each iteration `observe` takes the facts and may name a transition; the
controller carries it out (rolls weights back, opens a branch, commits) and then calls `apply`, so that a crash in
between repeats the transition instead of losing it. `to_dict` goes into each commit.

    stage 1 --gate | max_iterations | manual--> stage 2 --...--> last stage --> finished
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from crescendo.common.config.rl import StageConfig
from crescendo.common.errors import CheckpointError, ConfigError, RequestError
from crescendo.controller.stages.facts import GateDecision, IterationFacts, exponential_average
from crescendo.controller.stages.gates import decide

_STATE_VERSION = 1


class TransitionKind(StrEnum):
    """What the controller does: enter the next stage, end the step well, end it early, or fail it."""

    PROMOTE = "promote"
    FINISH = "finish"
    STOP = "stop"
    FAIL = "fail"


@dataclass(frozen=True)
class Transition:
    """A decision to leave a stage, with the numbers that caused it.

    left_by: the gate's name, max_iterations or manual; to_stage is empty unless kind is promote; the next stage
    starts from the weights after rollback_iteration, named by rollback (last, best, length_minimum).
    """

    kind: TransitionKind
    from_stage: str
    to_stage: str
    left_by: str
    reason: str
    iteration: int
    rollback: str
    rollback_iteration: int
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRecord:
    """A stage's past: iterations are -1 and texts empty while they are not known; accuracy is the last validation's."""

    name: str
    entered_iteration: int = -1
    left_iteration: int = -1
    left_by: str = ""
    accuracy: float | None = None


class StageScheduler:
    """The state machine over a step's stages."""

    def __init__(self, stages: Sequence[StageConfig], first_iteration: int = 0) -> None:
        """Enters the first stage at first_iteration. Raises ConfigError when there is no stage."""
        if not stages:
            raise ConfigError("rl.stages is empty; a step needs at least one.", field="rl.stages", fix="Add a stage.")
        self._stages = list(stages)
        self._current = 0
        self._finished = False
        self._history: list[IterationFacts] = []
        self._records = [StageRecord(stage.name) for stage in stages]
        self._records[0] = StageRecord(stages[0].name, entered_iteration=first_iteration)

    @property
    def stage(self) -> StageConfig:
        """The current stage; the last one once the step has finished."""
        return self._stages[self._current]

    @property
    def index(self) -> int:
        """Position of the current stage."""
        return self._current

    @property
    def finished(self) -> bool:
        """Whether the last stage has been left, or the step was ended early."""
        return self._finished

    @property
    def entered_iteration(self) -> int:
        """The current stage's first iteration."""
        return self._records[self._current].entered_iteration

    @property
    def records(self) -> tuple[StageRecord, ...]:
        """One a stage, in order."""
        return tuple(self._records)

    @property
    def history(self) -> tuple[IterationFacts, ...]:
        """Facts of the current stage since it was entered or rolled back."""
        return tuple(self._history)

    @property
    def later(self) -> tuple[str, ...]:
        """Names of the stages after the current one."""
        return tuple(stage.name for stage in self._stages[self._current + 1 :])

    def observe(self, facts: IterationFacts) -> Transition | None:
        """Takes in an iteration; a transition when the stage is to be left.

        Raises RequestError when iterations do not follow each other in time, or the step has finished.
        """
        self._check_running()
        if self._history and facts.iteration <= self._history[-1].iteration:
            raise RequestError(
                f"iteration {facts.iteration} was observed after iteration {self._history[-1].iteration}.",
                field="iteration",
            )
        self._history.append(facts)
        if facts.accuracy is not None:
            self._records[self._current] = replace(self._records[self._current], accuracy=facts.accuracy)
        decision = self.gate_report()
        if decision.leave:
            return self._transition(self._onward(), self.stage.gate.name, decision)
        if facts.iteration - self.entered_iteration + 1 >= self.stage.max_iterations:
            return self._limit_reached(decision)
        return None

    def gate_report(self) -> GateDecision:
        """What the gate makes of the history so far; for status and console."""
        return decide(self._history, self.stage.gate)

    def promote(self, to_stage: str = "") -> Transition:
        """A person's decision to go on: to the next stage, or to a named later one; from the last, to the end.

        Raises RequestError when the stage named does not come later.
        """
        self._check_running()
        later = self.later
        if to_stage and to_stage not in later:
            raise RequestError(
                f"stage {to_stage!r} does not follow {self.stage.name!r}; later stages: {', '.join(later) or 'none'}.",
                field="stage",
                fix="Name a later stage, or none for the next.",
            )
        decision = self.gate_report()
        transition = self._transition(self._onward(), "manual", replace(decision, reason="promoted by a person"))
        return replace(transition, to_stage=to_stage) if to_stage else transition

    def apply(self, transition: Transition, iteration: int) -> None:
        """Carries a transition out: the stage that it names is entered at `iteration`, with a fresh history."""
        self._check_running()
        if transition.from_stage != self.stage.name:
            raise RequestError(
                f"the transition leaves stage {transition.from_stage!r}, but the run is in {self.stage.name!r}.",
                field="from_stage",
            )
        self._records[self._current] = replace(
            self._records[self._current], left_iteration=transition.iteration, left_by=transition.left_by
        )
        if transition.kind is not TransitionKind.PROMOTE:
            self._finished = True
            return
        self._current = [stage.name for stage in self._stages].index(transition.to_stage)
        self._records[self._current] = replace(self._records[self._current], entered_iteration=iteration)
        self.restart_smoothing()

    def restart_smoothing(self) -> None:
        """Forgets the history: after a rollback, the next iterations come from other weights."""
        self._history = []

    def set_accuracy(self, stage: str, accuracy: float) -> None:
        """Takes in a validation made when the stage was left."""
        names = [record.name for record in self._records]
        self._records[names.index(stage)] = replace(self._records[names.index(stage)], accuracy=accuracy)

    def pins(self) -> frozenset[int]:
        """Iterations that the current gate would return to now; their commits must be kept."""
        if not self._history or self.stage.gate.rollback == "last":
            return frozenset()
        return frozenset({self._rollback_iteration(self.stage.gate.rollback)})

    def to_dict(self) -> dict[str, Any]:
        """State for a commit, as JSON."""
        return {
            "version": _STATE_VERSION,
            "stage": self.stage.name,
            "finished": self._finished,
            "records": [asdict(record) for record in self._records],
            "history": [asdict(facts) for facts in self._history],
        }

    @classmethod
    def from_dict(cls, stages: Sequence[StageConfig], state: Mapping[str, Any]) -> "StageScheduler":
        """Restores a commit's state; raises CheckpointError when it names other stages or is damaged."""
        scheduler = cls(stages)
        names = [stage.name for stage in stages]
        try:
            records = [StageRecord(**record) for record in state["records"]]
            history = [IterationFacts(**facts) for facts in state["history"]]
            version, stage, finished = state["version"], str(state["stage"]), bool(state["finished"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the stage scheduler's state is damaged: {error!r}.",
                field="stages",
                fix="Resume from an older commit.",
            ) from error
        if version != _STATE_VERSION or [record.name for record in records] != names or stage not in names:
            raise CheckpointError(
                f"the commit has stages {[record.name for record in records]} (state version {version}); "
                f"the run file has {names} (version {_STATE_VERSION}).",
                field="rl.stages",
                fix="Resume with the run file that the run was started with.",
            )
        scheduler._records, scheduler._history = records, history
        scheduler._current, scheduler._finished = names.index(stage), finished
        return scheduler

    def _check_running(self) -> None:
        if self._finished:
            raise RequestError("the step has finished; it has no stage to leave.", field="stage")

    def _onward(self) -> TransitionKind:
        return TransitionKind.PROMOTE if self._current + 1 < len(self._stages) else TransitionKind.FINISH

    def _limit_reached(self, decision: GateDecision) -> Transition:
        kinds = {"promote": self._onward(), "stop": TransitionKind.STOP, "fail": TransitionKind.FAIL}
        reason = f"{self.stage.max_iterations} iterations without the gate's consent ({decision.reason})"
        return self._transition(kinds[self.stage.on_max_iterations], "max_iterations", replace(decision, reason=reason))

    def _transition(self, kind: TransitionKind, left_by: str, decision: GateDecision) -> Transition:
        newest = self._history[-1].iteration if self._history else self.entered_iteration - 1
        following = self._stages[self._current + 1].name if kind is TransitionKind.PROMOTE else ""
        return Transition(
            kind=kind,
            from_stage=self.stage.name,
            to_stage=following,
            left_by=left_by,
            reason=decision.reason,
            iteration=newest,
            rollback=decision.rollback,
            rollback_iteration=self._rollback_iteration(decision.rollback),
            facts=decision.facts,
        )

    def _rollback_iteration(self, target: str) -> int:
        """The iteration after which the weights are the target's; the newest one while the target is not known."""
        if not self._history:
            return self.entered_iteration - 1
        validated = [facts for facts in self._history if facts.accuracy is not None]
        if target == "best" and validated:
            # Of equals the newest: it has trained longest.
            return max(validated, key=lambda facts: (facts.accuracy or 0.0, facts.iteration)).iteration
        if target == "length_minimum":
            smoothed = exponential_average([facts.length for facts in self._history], self.stage.gate.smoothing)
            return self._history[int(np.argmin(smoothed))].iteration
        return self._history[-1].iteration


def nearest_commit(target: int, committed: Iterable[int]) -> int | None:
    """The committed iteration nearest to a rollback target, the older of two as near; None when there is none."""
    return min(sorted(committed), key=lambda iteration: abs(iteration - target), default=None)
