"""False stops of the repetition rule on correct answers: `make bench BENCH=repetition`.

The responses are demonstrations of the quick start's task, all correct: full chains, chains with jumps and direct
answers. Ours is the share that each recipe's rule would end early, which should be 0; the baseline is the share of
looping responses (the same chains, their last tokens repeated to the context's end) that it must end, 1. Prints one
JSON line.
"""

import argparse
import random
from pathlib import Path

from crescendo.common.config import load_config
from crescendo.common.config.rl import RepetitionConfig
from crescendo.controller.data.tasks import create_task
from crescendo.proto.v1 import common_pb2
from crescendo.rollout.repetition import false_stop_rate
from tests.bench.harness import Measured, report, rounded

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart" / "recipe.yaml"
CONTEXT_TOKENS = 96
LOOP_TOKENS = 4  # one step of a chain, over and over


def rule_of(config: RepetitionConfig) -> common_pb2.RepetitionRule:
    """The rule on the wire."""
    return common_pb2.RepetitionRule(
        ngram_tokens=config.ngram_tokens, window_tokens=config.window_tokens, count=config.count
    )


def main() -> None:
    """Measures and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--responses", type=int, default=20_000)
    arguments = parser.parse_args()
    recipe = load_config(RECIPE, [])
    task = create_task("clock_sum", recipe.steps[0].sft.data.options)
    draw = random.Random(0)
    # At 90 % of the warm-up the task shows its mixture; a character is a token.
    correct = [[ord(c) for c in task.demonstration(draw, 0.9).response] for _ in range(arguments.responses)]
    looping = [tokens + tokens[-LOOP_TOKENS:] * (CONTEXT_TOKENS // LOOP_TOKENS) for tokens in correct]
    rule = rule_of(recipe.steps[1].rl.repetition)
    false_stops = false_stop_rate(correct, rule)
    caught = false_stop_rate(looping, rule)
    details = {"correct_responses": len(correct), "looping_caught": rounded(caught), "rule": str(rule).split("\n")[:3]}
    report(Measured("repetition", false_stops, caught, "share of responses ended", details))


if __name__ == "__main__":
    main()
