"""What both sides of the e2e benchmark do: prompts, gold answers and the forced length of every sample.

demo: the quick start's lengths at its last stage, where the policy reasons in full: 4n + 3 tokens, n from 3 to 23 (at
most 95). long_tail: median 32 tokens, one sample in ten between 128 and 512, as reasoning
models produce them. heavy_tail (the `partial` benchmark's): one in fifty between 512 and 2,048.
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass

LABELS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = f"0123456789>=?#.{LABELS}$"
PADDING = "."
NUM_PROMPTS = 16
SAMPLES_PER_PROMPT = 16


@dataclass(frozen=True)
class Step:
    """One training step: prompts[p], answers[p], lengths[p][s]."""

    prompts: list[str]
    answers: list[str]
    lengths: list[list[int]]


@dataclass(frozen=True)
class Plan:
    """A mix of lengths, and its steps."""

    mix: str
    max_response_tokens: int
    samples_per_prompt: int
    steps: list[Step]

    def as_json(self) -> dict[str, object]:
        """What trl_side.py reads."""
        return asdict(self)


def clock_sum(draw: random.Random, num_terms: int) -> tuple[str, str]:
    """A prompt of the quick start's task and its answer: a start digit plus labelled increments, modulo 10."""
    start = draw.randrange(10)
    terms = [draw.randint(1, 3) for _ in range(num_terms)]
    prompt = str(start) + "".join(f"{label}{term}" for label, term in zip(LABELS, terms, strict=False)) + "?"
    return prompt, str((start + sum(terms)) % 10)


def demo_lengths(draw: random.Random, count: int) -> list[int]:
    """Full chains of thought for n terms, n uniform."""
    return [4 * draw.randint(3, 23) + 3 for _ in range(count)]


def long_tail_lengths(draw: random.Random, count: int) -> list[int]:
    """One in ten uniform in 128..512, the others in 12..48, which puts the median of all at 32."""
    num_long = round(count / 10)
    lengths = [draw.randint(128, 512) for _ in range(num_long)]
    lengths += [draw.randint(12, 48) for _ in range(count - num_long)]
    draw.shuffle(lengths)
    return lengths


def heavy_tail_lengths(draw: random.Random, count: int) -> list[int]:
    """One in fifty uniform in 512..2048, the others in 12..48: few responses are very long, as k1.5 describes."""
    num_long = round(count / 50)
    lengths = [draw.randint(512, 2048) for _ in range(num_long)]
    lengths += [draw.randint(12, 48) for _ in range(count - num_long)]
    draw.shuffle(lengths)
    return lengths


@dataclass(frozen=True)
class Mix:
    """How lengths are drawn, and what they stay below.

    Of ours, token_budget: tokens an iteration, 0 is no limit; in_flight: trajectories that an iteration runs, those
    of earlier ones included.
    """

    draw: Callable[[random.Random, int], list[int]]
    max_response_tokens: int
    token_budget: int
    in_flight: int


MIXES = {
    "demo": Mix(demo_lengths, 96, 0, 256),
    "long_tail": Mix(long_tail_lengths, 512, 64, 384),
    "heavy_tail": Mix(heavy_tail_lengths, 2048, 256, 384),
}


def make_plan(mix: str, num_steps: int, seed: int = 0) -> Plan:
    """num_steps steps of 16 prompts times 16 samples; the same seed gives the same plan."""
    draw = random.Random(f"{mix}-{seed}")
    steps = []
    for _ in range(num_steps):
        terms = [draw.randint(3, 23) for _ in range(NUM_PROMPTS)]
        pairs = [clock_sum(draw, number) for number in terms]
        flat = MIXES[mix].draw(draw, NUM_PROMPTS * SAMPLES_PER_PROMPT)
        lengths = [flat[at : at + SAMPLES_PER_PROMPT] for at in range(0, len(flat), SAMPLES_PER_PROMPT)]
        steps.append(Step([prompt for prompt, _ in pairs], [answer for _, answer in pairs], lengths))
    return Plan(mix, MIXES[mix].max_response_tokens, SAMPLES_PER_PROMPT, steps)
