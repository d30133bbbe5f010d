"""Scorers by name. `check_chain` tells whether a reward chain can be applied, without starting anything."""

from crescendo.reward_service.scorers.base import GroupScorer, Outcome, RemoteScorer, Sample, SandboxScorer, Scorer
from crescendo.reward_service.scorers.registry import (
    GROUP_SCORERS,
    REMOTE_SCORERS,
    SANDBOX_SCORERS,
    SCORERS,
    WORKER_SCORERS,
    check_chain,
    check_group_chain,
    resolve_chain,
    resolve_group_chain,
)

__all__ = [
    "GROUP_SCORERS",
    "REMOTE_SCORERS",
    "SANDBOX_SCORERS",
    "SCORERS",
    "WORKER_SCORERS",
    "GroupScorer",
    "Outcome",
    "RemoteScorer",
    "Sample",
    "SandboxScorer",
    "Scorer",
    "check_chain",
    "check_group_chain",
    "resolve_chain",
    "resolve_group_chain",
]
