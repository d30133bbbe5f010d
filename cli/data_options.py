"""The arguments of `crescendo data ...`. Light: it is imported with the command line itself."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

from crescendo.cli.testcases_options import add_testcases

Add: TypeAlias = Callable[..., argparse.ArgumentParser]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_data_commands(commands: Commands, add: Add) -> None:
    """Adds `data` with its actions; add(commands, name, target, summary, *examples) makes one command."""
    data = add(
        commands,
        "data",
        "data:check",
        "look at a prompt set and filter it",
        "crescendo data check prompts.jsonl",
        "crescendo data dedupe prompts.jsonl --against test.jsonl",
        "crescendo data filter prompts.dedupe.jsonl",
        "crescendo data difficulty prompts.filter.jsonl --model models/smollm2-135m-instruct --max-tokens 512",
    )
    actions = data.add_subparsers(title="actions", metavar="ACTION", required=True)
    for add_action in (_add_check, _add_dedupe, _add_filter, _add_difficulty, add_testcases):
        add_action(actions, add)


def _add_check(actions: Commands, add: Add) -> None:
    check = add(
        actions,
        "check",
        "data:check",
        "check the rows of a prompt set; exit code 2 when there are bad ones",
        "crescendo data check prompts.jsonl --out good.jsonl",
    )
    _add_file(check, "where good rows go; nothing is written when left out")
    _add_limits(check)


def _add_dedupe(actions: Commands, add: Add) -> None:
    dedupe = add(
        actions,
        "dedupe",
        "data:dedupe",
        "leave out near duplicates, and questions that overlap with test sets",
        "crescendo data dedupe train.jsonl --against aime.json --against gsm8k-test.jsonl",
    )
    _add_file(dedupe)
    dedupe.add_argument(
        "--against", metavar="FILE", action="append", default=[], help="a test set; may be repeated and has the "
        "training set's column for the question, or one of the usual ones",
    )  # fmt: skip
    dedupe.add_argument("--ngram", type=_positive, default=8, help="words that tell an overlap (default: 8, as s1)")
    dedupe.add_argument("--overlap", metavar="SHARE", type=_share, default=0.0,
                        help="of a question's n-grams that test sets have too (default: 0, one)")  # fmt: skip
    dedupe.add_argument("--threshold", type=_share, default=0.8, help="similarity of near duplicates (default: 0.8)")
    dedupe.add_argument("--shingle", type=_positive, default=3, help="words in a shingle (default: 3)")
    dedupe.add_argument("--same-answer", action="store_true", help="near duplicates have the same answer, too")


def _add_filter(actions: Commands, add: Add) -> None:
    filters = add(
        actions,
        "filter",
        "data:filter_kinds",
        "leave out multiple choice, true or false, proofs, and answers that cannot be graded",
        "crescendo data filter prompts.jsonl --strict-answers",
    )
    _add_file(filters)
    filters.add_argument("--keep", metavar="RULE", action="append", default=[], choices=KINDS,
                         help=f"a rule that is not applied; may be repeated: {', '.join(KINDS)}")  # fmt: skip
    filters.add_argument("--strict-answers", action="store_true", help="DeepScaleR's rule on answers, too")
    _add_scorer(filters)


def _add_difficulty(actions: Commands, add: Add) -> None:
    difficulty = add(
        actions,
        "difficulty",
        "data:difficulty",
        "measure a model's pass rate; leave out what is too easy, too hard or guessed",
        "crescendo data difficulty prompts.jsonl --model models/smollm2-135m-instruct",
        "crescendo data difficulty prompts.jsonl --model models/m --engine 127.0.0.1:7000 --token-file token",
        "",
        "Ctrl-C ends it; the same command goes on where it was.",
    )
    _add_file(difficulty)
    difficulty.add_argument("--model", metavar="FOLDER", required=True, help="model in Hugging Face format")
    difficulty.add_argument("--engine", metavar="HOST:PORT", default="",
                            help="a RolloutService with the model; one is started here when left out")  # fmt: skip
    difficulty.add_argument("--token-file", metavar="FILE", default="", help="holds the engine's token")
    difficulty.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the engine started here")
    difficulty.add_argument("--kv-cache-gib", type=float, default=1.0, help="of the engine started here (default: 1)")
    difficulty.add_argument("--samples", type=_count, default=10, help="answers a question; 0: none (default: 10)")
    difficulty.add_argument("--guesses", type=_count, default=8, help="guesses without reasoning; 0: none (default: 8)")
    difficulty.add_argument("--temperature", type=float, default=1.0, help="of both (default: 1)")
    difficulty.add_argument("--max-tokens", type=_positive, default=2048, help="longest answer (default: 2048)")
    difficulty.add_argument("--guess-tokens", type=_positive, default=32, help="longest guess (default: 32)")
    difficulty.add_argument("--max-prompt-tokens", type=_positive, default=2048, help="longer ones are left out")
    difficulty.add_argument("--template", default="{question}\nPut the final answer in \\boxed{}.",
                            help="what is asked; {question} is replaced")  # fmt: skip
    difficulty.add_argument("--guess-template", default="{question}\nSay only the final answer, without any reasoning.",
                            help="what is asked for a guess")  # fmt: skip
    difficulty.add_argument("--guess-prefix", default="\\boxed{", help="what the guess continues (default: \\boxed{)")
    difficulty.add_argument("--min-pass-rate", type=_share, default=0.0, help="lower ones go (default: 0)")
    difficulty.add_argument("--max-pass-rate", type=_share, default=0.95, help="higher ones go (default: 0.95)")
    difficulty.add_argument("--batch", type=_positive, default=32, help="questions at once (default: 32)")
    _add_scorer(difficulty)


KINDS = ("multiple_choice", "true_false", "proof", "ungradable")


def _add_file(
    command: argparse.ArgumentParser, out_help: str = "where kept rows go (default: FILE.ACTION.jsonl)"
) -> None:
    command.add_argument(
        "file", metavar="FILE", help="JSON lines, a JSON array or Parquet; also .gz, .zst and the like"
    )
    command.add_argument("--out", metavar="FILE", default="", help=out_help)
    command.add_argument("--force", action="store_true", help="overwrite what is there")
    command.add_argument("--question", metavar="COLUMN", default="", help="default: question, problem or prompt")
    command.add_argument("--answer", metavar="COLUMN", default="", help="default: answer")
    command.add_argument("--id", metavar="COLUMN", default="", help="default: a digest of question and answers")
    command.add_argument("--answer-after", metavar="MARKER", default="",
                         help="the answer is what follows it, such as '####'")  # fmt: skip
    command.add_argument("--plain", action="store_true", help="one line now and then in place of the progress bar")


def _add_limits(command: argparse.ArgumentParser) -> None:
    command.add_argument("--max-question", type=_positive, default=20_000, help="characters (default: 20000)")
    command.add_argument("--max-answer", type=_positive, default=2_000, help="characters (default: 2000)")


def _add_scorer(command: argparse.ArgumentParser) -> None:
    command.add_argument("--scorer", default="math_answer", help="that grades answers (default: math_answer)")
    command.add_argument("--scorer-option", metavar="NAME=VALUE", action="append", default=[], help="may be repeated")
    command.add_argument("--workers", type=_positive, default=2, help="processes that grade (default: 2)")
    command.add_argument("--deadline", metavar="SECONDS", type=float, default=10.0, help="for one answer (default: 10)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must not be negative")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must lie between 0 and 1")
    return value
