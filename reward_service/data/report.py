"""What a filter did to a prompt set: how many rows went, by which rule, with examples."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crescendo.reward_service.data.questions import Refusal

MAX_EXAMPLES = 5


@dataclass
class Report:
    """Counts while a command runs; `to_json` is what the report file holds."""

    command: str
    source: str
    num_rows: int = 0
    num_kept: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def num_removed(self) -> int:
        """Rows that went."""
        return sum(self.removed.values())

    def keep(self) -> None:
        """Counts a row that stays."""
        self.num_rows += 1
        self.num_kept += 1

    def remove(self, refusal: Refusal, file: str, number: int, excerpt: str) -> dict[str, Any]:
        """Counts a row that goes; returns its record."""
        self.num_rows += 1
        self.removed[refusal.rule] += 1
        record = {"file": file, "row": number, "rule": refusal.rule, "reason": refusal.reason, "excerpt": excerpt}
        examples = self.examples.setdefault(refusal.rule, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(record)
        return record

    def to_json(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The whole report."""
        return {
            "command": self.command,
            "source": self.source,
            "options": dict(options),
            "num_rows": self.num_rows,
            "num_kept": self.num_kept,
            "num_removed": self.num_removed,
            "removed": dict(self.removed.most_common()),
            "examples": self.examples,
            "facts": self.facts,
            "seconds": round(self.seconds, 3),
        }
