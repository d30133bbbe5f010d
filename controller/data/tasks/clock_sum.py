"""clock_sum: addition around a ten-hour clock, with room to think longer or shorter.

    question  3a1b2c3?             start digit 3, then labelled steps 1, 2, 3
    chain     a1=4b2=6c3=9#9       each step with the sum so far, then # and the answer
    jump      b>6c3=9#9            several steps at once: shorter, and easily wrong
    direct    #9                   no thought at all: mostly wrong

n steps take a full chain 4n + 2 tokens of a character-level model, and one for the end of sequence. A context limit
of 32, 64, 96 tokens therefore fits n <= 7, 15, 23, so that accuracy is bound by the context and each stage is worth
its length.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from crescendo.common.errors import ConfigError
from crescendo.controller.data.tasks.base import Demonstration, Problem, read_options

_HOURS = 10
_STEPS = (1, 2, 3)
_LABELS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class ClockSumOptions:
    """Options of clock_sum, with the values that learned.

    min_terms, max_terms: bounds of n. Demonstrations come in three phases of the warm-up: until warmup_share of it
    full chains of at most warmup_max_terms steps; until chain_share full chains of any length; then a mixture in
    which direct_share answer directly, and the others jump with a probability drawn from jump_styles
    (`probability:weight, ...`), over at most max_jump steps.
    """

    min_terms: int = 3
    max_terms: int = 23
    warmup_max_terms: int = 10
    warmup_share: float = 0.3
    chain_share: float = 0.87
    direct_share: float = 0.4
    jump_styles: str = "1.0:0.55,0.5:0.3,0.0:0.15"
    max_jump: int = 6


@dataclass(frozen=True)
class _Sum:
    """A start, its steps, and the sum after each of them."""

    start: int
    steps: tuple[int, ...]

    @property
    def sums(self) -> list[int]:
        sums, total = [], self.start
        for step in self.steps:
            total = (total + step) % _HOURS
            sums.append(total)
        return sums

    @property
    def question(self) -> str:
        return str(self.start) + "".join(f"{_LABELS[i]}{step}" for i, step in enumerate(self.steps)) + "?"


class ClockSum:
    """The task."""

    name = "clock_sum"

    def __init__(self, options: ClockSumOptions) -> None:
        """Raises ConfigError when the options contradict each other."""
        if not 1 <= options.min_terms <= options.max_terms <= len(_LABELS):
            raise ConfigError(
                f"clock_sum has min_terms {options.min_terms} and max_terms {options.max_terms}; it must hold that "
                f"1 <= min_terms <= max_terms <= {len(_LABELS)}.",
                field="data.options",
                fix="Correct the two options.",
            )
        if not 0 <= options.warmup_share <= options.chain_share <= 1 or not 0 <= options.direct_share <= 1:
            raise ConfigError(
                f"clock_sum has warmup_share {options.warmup_share}, chain_share {options.chain_share}, direct_share "
                f"{options.direct_share}; it must hold that 0 <= warmup_share <= chain_share <= 1 and direct_share "
                "lies in 0..1.",
                field="data.options",
                fix="Correct the options.",
            )
        if options.max_jump < 2 or options.warmup_max_terms < options.min_terms:
            raise ConfigError(
                f"clock_sum has max_jump {options.max_jump} (at least 2) and warmup_max_terms "
                f"{options.warmup_max_terms} (at least min_terms, {options.min_terms}).",
                field="data.options",
                fix="Correct the options.",
            )
        self._options = options
        self._styles, self._style_weights = _parse_styles(options.jump_styles)

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> "ClockSum":
        """The task with options given as text."""
        return cls(read_options(ClockSumOptions, options, cls.name))

    def problems(self, seed: int) -> Iterator[Problem]:
        """Problems with n drawn evenly from min_terms..max_terms; difficulty is n scaled to 0..1."""
        generator = random.Random(f"{self.name}:{seed}")
        low, high = self._options.min_terms, self._options.max_terms
        while True:
            problem = self._draw(generator, high)
            yield Problem(
                question=problem.question,
                answer=str(problem.sums[-1]),
                difficulty=(len(problem.steps) - low) / max(1, high - low),
                metadata={"terms": str(len(problem.steps))},
            )

    def demonstration(self, generator: random.Random, progress: float) -> Demonstration:
        """A chain of thought in the style that the phase calls for."""
        options = self._options
        warming_up = progress < options.warmup_share
        most_terms = min(options.max_terms, options.warmup_max_terms) if warming_up else options.max_terms
        problem = self._draw(generator, most_terms)
        if progress < options.chain_share:
            return Demonstration(problem.question, self._chain(generator, problem, 0.0))
        if generator.random() < options.direct_share:
            return Demonstration(problem.question, f"#{problem.sums[-1]}")
        jump = generator.choices(self._styles, self._style_weights)[0]
        return Demonstration(problem.question, self._chain(generator, problem, jump))

    def _draw(self, generator: random.Random, most_terms: int) -> _Sum:
        terms = generator.randint(self._options.min_terms, most_terms)
        start = generator.randrange(_HOURS)
        return _Sum(start, tuple(generator.choice(_STEPS) for _ in range(terms)))

    def _chain(self, generator: random.Random, problem: _Sum, jump: float) -> str:
        """A chain of thought that jumps over several steps with probability `jump` at each position."""
        sums, terms = problem.sums, len(problem.steps)
        written, done = [], 0
        while done < terms:
            if terms - done >= 2 and generator.random() < jump:
                done += generator.randint(2, min(self._options.max_jump, terms - done))
                written.append(f"{_LABELS[done - 1]}>{sums[done - 1]}")
            else:
                written.append(f"{_LABELS[done]}{problem.steps[done]}={sums[done]}")
                done += 1
        return "".join(written) + f"#{sums[-1]}"


def _parse_styles(text: str) -> tuple[list[float], list[float]]:
    try:
        pairs = [tuple(map(float, part.split(":"))) for part in text.split(",")]
        styles, weights = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if any(len(pair) != 2 or not 0 <= pair[0] <= 1 or pair[1] < 0 for pair in pairs) or sum(weights) <= 0:
            raise ValueError("out of bounds")
    except (ValueError, IndexError) as error:
        raise ConfigError(
            f"clock_sum has jump_styles {text!r}; it must read `probability:weight, ...` with probabilities in 0..1.",
            field="data.options.jump_styles",
            fix="Write it like 1.0:0.55,0.5:0.3,0.0:0.15.",
        ) from error
    return styles, weights
