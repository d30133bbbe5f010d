"""Gates: the rules by which a stage is left. One file a gate; a new gate is a file and a line here."""

from collections.abc import Callable, Mapping, Sequence

from crescendo.common.config.rl import GateConfig
from crescendo.common.errors import ConfigError
from crescendo.controller.stages.facts import GateDecision, IterationFacts
from crescendo.controller.stages.gates.length_turn import length_turn
from crescendo.controller.stages.gates.manual import manual
from crescendo.controller.stages.gates.plateau import plateau
from crescendo.controller.stages.gates.step import step

Gate = Callable[[Sequence[IterationFacts], GateConfig], GateDecision]

GATES: Mapping[str, Gate] = {"length_turn": length_turn, "plateau": plateau, "step": step, "manual": manual}


def decide(history: Sequence[IterationFacts], config: GateConfig) -> GateDecision:
    """The gate's decision after the newest iteration of the history.

    The rule must hold for `patience` iterations in a row, and never before `min_iterations`. Raises ConfigError on
    an unknown gate.
    """
    gate = GATES.get(config.name)
    if gate is None:
        raise ConfigError(
            f"gate.name is {config.name!r}; it must be one of {', '.join(GATES)}.",
            field="gate.name",
            fix="Choose one of the gates named.",
        )
    newest = gate(history, config)
    if not newest.leave:
        return newest
    if len(history) < config.min_iterations:
        return _stay(newest, f"{newest.reason}, but fewer than {config.min_iterations} iterations")
    for held in range(1, config.patience):
        if not gate(history[:-held], config).leave:
            return _stay(newest, f"{newest.reason}, for {held} of {config.patience} iterations")
    return newest


def _stay(decision: GateDecision, reason: str) -> GateDecision:
    return GateDecision(False, reason, decision.facts, decision.rollback)


__all__ = ["GATES", "Gate", "decide"]
