"""From archived groups to training examples of other tools: supervised, preference, or all there is. Pure.

`crescendo export` writes what this yields as JSON lines. The columns are those that TRL documents as its dataset
formats (huggingface.co/docs/trl/dataset_formats), in two styles:

    sft   conversational  messages                          standard  prompt, completion
    dpo   conversational  prompt, chosen, rejected: lists   standard  the same as texts
          of messages

Conversational is for models with a chat template, which TRL then applies; standard holds the prompt as the policy
read it. `auto` takes the style that the run itself used.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crescendo.common.errors import DataError

Row = Mapping[str, Any]

WRONG_VERDICTS = ("wrong", "unparsable")
CUT_REASONS = ("length", "repeat")

COLUMNS = (
    "trajectory_id", "branch", "consumed_iteration", "state", "prompt_id", "prompt", "prompt_text", "finish_reason",
    "num_tokens", "text", "reward", "components",
)  # fmt: skip
"""What sft and dpo read of the archive."""


@dataclass(frozen=True)
class Rules:
    """Which answers become examples.

    shortest: sft takes the shortest correct answer of a group, not each (k1.5's shortest rejection sampling,
    arXiv:2501.12599 section 2.4). rejected: dpo's other side, `wrong` answers, or `longer` ones: wrong ones longer than
    the chosen, and correct ones at least longer_factor times as long (k1.5's long2short DPO, 1.5). num_pairs: at
    most so many pairs a group. max_tokens: longer answers are never chosen; 0 is no limit.
    """

    style: str = "auto"
    shortest: bool = False
    rejected: str = "wrong"
    longer_factor: float = 1.5
    num_pairs: int = 1
    max_tokens: int = 0


def is_correct(row: Row) -> bool:
    """The first component judges the answer; a response that was cut did not give one."""
    components = row["components"]
    return bool(components) and components[0]["verdict"] == "correct" and row["finish_reason"] == "stop"


def is_wrong(row: Row) -> bool:
    """Judged wrong, or cut before an answer; not one that the judge could not judge."""
    components = row["components"]
    judged = bool(components) and components[0]["verdict"] in WRONG_VERDICTS
    return judged or row["finish_reason"] in CUT_REASONS


def sft_examples(rows: Sequence[Row], rules: Rules) -> Iterator[dict[str, Any]]:
    """Examples of one group: its correct answers, or the shortest of them."""
    correct = _by_length(row for row in rows if is_correct(row) and _fits(row, rules))
    for row in correct[:1] if rules.shortest else correct:
        if _is_conversational(row, rules):
            yield {"messages": [*_messages(row), _answer(row)]}
        else:
            yield {"prompt": _text(row, "prompt_text"), "completion": _text(row, "text")}


def dpo_examples(rows: Sequence[Row], rules: Rules) -> Iterator[dict[str, Any]]:
    """Pairs of one group: its shortest correct answer, against others."""
    correct = _by_length(row for row in rows if is_correct(row) and _fits(row, rules))
    if not correct:
        return
    chosen = correct[0]
    for row in [other for other in _by_length(rows) if _is_rejected(other, chosen, rules)][: rules.num_pairs]:
        if _is_conversational(chosen, rules):
            yield {"prompt": _messages(chosen), "chosen": [_answer(chosen)], "rejected": [_answer(row)]}
        else:
            prompt = _text(chosen, "prompt_text")
            yield {"prompt": prompt, "chosen": _text(chosen, "text"), "rejected": _text(row, "text")}


def rollout_examples(rows: Sequence[Row], rules: Rules) -> Iterator[dict[str, Any]]:
    """Everything that the archive holds of one group's trajectories."""
    del rules
    for row in rows:
        yield dict(row)


def _is_rejected(row: Row, chosen: Row, rules: Rules) -> bool:
    if row["trajectory_id"] == chosen["trajectory_id"]:
        return False
    if rules.rejected == "wrong":
        return is_wrong(row)
    longer, much_longer = row["num_tokens"] > chosen["num_tokens"], rules.longer_factor * chosen["num_tokens"]
    return (is_wrong(row) and longer) or (is_correct(row) and row["num_tokens"] >= much_longer)


def _by_length(rows: Any) -> list[Row]:
    return sorted(rows, key=lambda row: (row["num_tokens"], row["trajectory_id"]))


def _fits(row: Row, rules: Rules) -> bool:
    return not rules.max_tokens or row["num_tokens"] <= rules.max_tokens


def _is_conversational(row: Row, rules: Rules) -> bool:
    return bool(row["chat_template"]) if rules.style == "auto" else rules.style == "conversational"


def _messages(row: Row) -> list[dict[str, str]]:
    """The prompt's parts as messages, neighbours of one role joined. Raises DataError for an image."""
    messages: list[dict[str, str]] = []
    for part in row["prompt"]:
        if part["image"]:
            raise DataError(
                f"prompt {row['prompt_id']} holds an image, which a conversational text file can't carry.",
                fix="Use --style standard, or --format rollouts.",
            )
        role = part["role"] or "user"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += part["text"]
        else:
            messages.append({"role": role, "content": part["text"]})
    return messages


def _answer(row: Row) -> dict[str, str]:
    return {"role": "assistant", "content": _text(row, "text")}


def _text(row: Row, column: str) -> str:
    text = row[column]
    if text is None:
        raise DataError(
            f"the archive holds no text of {row['trajectory_id']}: the archiver found no tokenizer.",
            fix="Export with --format rollouts, which has the token ids.",
        )
    return str(text)


EXAMPLES = {"sft": sft_examples, "dpo": dpo_examples, "rollouts": rollout_examples}
"""Format to the function that turns one group's rows into examples."""
