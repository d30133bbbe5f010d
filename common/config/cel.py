"""Rules over several fields, in CEL, for an API server that checks a run before it stores it.

Each says in CEL what check.py or check_rl.py says in Python, as far as CEL can: the API server refuses early, and
the operator checks everything again. Keys are camelCase, as on the wire; defaults have been filled in by then.
"""

from dataclasses import dataclass
from typing import Final

from crescendo.common.config.rl import RepetitionConfig, RlStepConfig, StageConfig
from crescendo.common.config.schema import Config, RolloutConfig, StepConfig


@dataclass(frozen=True)
class CelRule:
    """An expression over `self` that must be true, and what to say when it is not."""

    rule: str
    message: str

    def to_dict(self) -> dict[str, str]:
        """As x-kubernetes-validations lists it."""
        return {"rule": self.rule, "message": self.message}


RULES: Final[dict[type, tuple[CelRule, ...]]] = {
    Config: (CelRule("size(self.steps) >= 1", "steps is empty; a run has at least one step"),),
    StepConfig: (
        CelRule("self.kind != 'rl' || size(self.rl.stages) >= 1", "an rl step has at least one stage: add rl.stages"),
        CelRule("self.kind != 'sft' || size(self.rl.stages) == 0", "rl.stages is set, but kind is sft; set kind to rl"),
    ),
    RlStepConfig: (
        CelRule(
            "self.stages.map(s, s.maxResponseTokens).isSorted()",
            "stages: maxResponseTokens must not shrink from a stage to the next: contexts only grow",
        ),
        CelRule("self.maxStaleness == 0", "maxStaleness must be 0: this version runs synchronous iterations only"),
    ),
    StageConfig: (
        CelRule("self.samplesPerPrompt >= 2", "samplesPerPrompt must be at least 2: samples are compared in groups"),
        CelRule("self.tokenBudget <= self.maxResponseTokens", "tokenBudget must be at most maxResponseTokens"),
        CelRule(
            "self.gate.name == 'manual' || "
            "(self.gate.name == 'step' ? self.gate.iterations : self.gate.minIterations) <= self.maxIterations",
            "the gate decides after maxIterations, that is never: lower its iterations or raise maxIterations",
        ),
    ),
    RolloutConfig: (CelRule("self.leaseS > self.flushS", "leaseS must be longer than flushS"),),
    RepetitionConfig: (
        CelRule(
            "!self.enabled || self.windowTokens >= self.ngramTokens * self.count",
            "windowTokens must hold ngramTokens count times",
        ),
    ),
}
