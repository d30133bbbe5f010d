"""Demonstrations for a supervised warm-up. Called by the controller chunk by chunk; resumable at any example."""

import random
from collections.abc import Collection, Iterator

import numpy as np

from crescendo.common.config.schema import DataConfig, SftStepConfig
from crescendo.common.errors import DataError
from crescendo.common.tokenizer import Tokenizer
from crescendo.controller.data.fields import BadRow, Columns, fingerprint
from crescendo.controller.data.quarantine import Quarantine, QuarantineSink
from crescendo.controller.data.rendering import PromptRenderer
from crescendo.controller.data.rows import Row
from crescendo.controller.data.sources import open_source
from crescendo.controller.data.tasks import Task, create_task
from crescendo.proto.v1 import trainer_pb2

_FIELD = "sft.data"
# A task whose problems are all held out would otherwise be asked for ever.
_MAX_REDRAWS = 100


def demonstrations(
    config: SftStepConfig,
    data: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    *,
    first_example: int = 0,
    held_out: Collection[str] = frozenset(),
    quarantine: QuarantineSink | None = None,
) -> Iterator[trainer_pb2.SftExample]:
    """The steps * batch_size examples of a warm-up, from first_example on; responses end with the end of sequence.

    Example i depends on the config, the seed and i alone, so a resumed warm-up sees what it would have seen. A file
    is gone through in a new random order each epoch; a task makes problems for the progress of the warm-up. Questions
    in held_out (fingerprints) are left out. Raises DataError when the data cannot be used.
    """
    maker = _ExampleMaker(data, tokenizer)
    total = config.steps * config.batch_size
    if config.data.name == "task":
        task = create_task(config.data.path, config.data.options)
        for index in range(first_example, total):
            yield _from_task(task, maker, f"{seed}:{config.data.seed}:{index}", index / total, held_out)
        return
    examples = _read(config, data, maker, held_out, quarantine)
    for index in range(first_example, total):
        epoch, position = divmod(index, len(examples))
        if position == 0 or index == first_example:
            order = np.random.default_rng([seed, config.data.seed, epoch]).permutation(len(examples))
        yield examples[int(order[position])]


def _from_task(
    task: Task, maker: "_ExampleMaker", seed: str, progress: float, held_out: Collection[str]
) -> trainer_pb2.SftExample:
    generator = random.Random(seed)
    for _ in range(_MAX_REDRAWS):
        shown = task.demonstration(generator, progress)
        if fingerprint(shown.question) not in held_out:
            try:
                return maker.make(shown.question, shown.response)
            except BadRow as reason:
                raise DataError(
                    f"a demonstration of task {task.name} cannot be used: {reason}.",
                    field=_FIELD,
                    fix="Check that the tokenizer knows the task's characters, and data.max_prompt_tokens.",
                ) from reason
    raise DataError(
        f"task {task.name} has no problem that is not held out.",
        field=_FIELD,
        fix="Lower data.validation.num_prompts, or widen the task's options.",
    )


def _read(
    config: SftStepConfig,
    data: DataConfig,
    maker: "_ExampleMaker",
    held_out: Collection[str],
    quarantine: QuarantineSink | None,
) -> list[trainer_pb2.SftExample]:
    columns = Columns(config.data, ("question", "response"))
    bad = Quarantine(_FIELD, quarantine)
    examples: list[trainer_pb2.SftExample] = []
    for row in open_source(config.data, columns.needed).rows():
        bad.saw()
        try:
            question, response = _texts(row, columns)
            if fingerprint(question) not in held_out:
                examples.append(maker.make(question, response))
        except BadRow as reason:
            bad.add(row, str(reason))
        if config.data.num_prompts and len(examples) == config.data.num_prompts:
            break
    bad.check(data.max_bad_rows)
    if not examples:
        raise DataError(
            f"{_FIELD} has no usable row ({bad.num_rows} read, {bad.num_bad} set aside).",
            field=_FIELD,
            fix="Check the path; quarantine.jsonl in the run folder lists the rows set aside.",
        )
    return examples


def _texts(row: Row, columns: Columns) -> tuple[str, str]:
    if row.problem:
        raise BadRow(row.problem)
    return columns.text(row.values, "question").strip(), columns.text(row.values, "response")


class _ExampleMaker:
    def __init__(self, data: DataConfig, tokenizer: Tokenizer) -> None:
        self._renderer = PromptRenderer(data, tokenizer)
        self._tokenizer = tokenizer
        self._max_tokens = data.max_prompt_tokens

    def make(self, question: str, response: str) -> trainer_pb2.SftExample:
        """Raises BadRow with the reason."""
        try:
            prompt = self._renderer.render(question).token_ids
            answer = self._tokenizer.encode(response)
        except DataError as error:
            raise BadRow(error.message) from error
        if len(prompt) > self._max_tokens:
            raise BadRow(f"prompt has {len(prompt)} tokens, data.max_prompt_tokens is {self._max_tokens}")
        if not answer or answer[-1] not in self._tokenizer.eos_token_ids:
            answer.append(self._tokenizer.eos_token_ids[0])
        return trainer_pb2.SftExample(prompt_token_ids=prompt, response_token_ids=answer)
