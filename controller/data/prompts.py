"""From a data source to the prompts of a run. Called once at the start of an RL step, and again on resume.

A row becomes a prompt, or it is set aside with its reason; nothing else happens to it, and the order is the
source's, so the same config gives the same prompts in every run.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from crescendo.common.config.schema import DataConfig, DataSourceConfig
from crescendo.common.errors import DataError
from crescendo.common.tokenizer import Tokenizer
from crescendo.controller.data.fields import (
    BadRow,
    Columns,
    checked_text,
    difficulty,
    fingerprint,
    gold_answers,
    identity,
)
from crescendo.controller.data.quarantine import Quarantine, QuarantineSink
from crescendo.controller.data.rendering import PromptRenderer
from crescendo.controller.data.rows import Row
from crescendo.controller.data.sources import open_source
from crescendo.proto.v1 import common_pb2


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a source, in its order.

    difficulties: 0..1 a prompt, None where the row has none; fingerprints: of the questions, for `held_out`.
    """

    prompts: tuple[common_pb2.Prompt, ...]
    difficulties: tuple[float | None, ...]
    fingerprints: frozenset[str]
    num_rows: int
    num_quarantined: int
    num_held_out: int

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class _Built:
    prompt: common_pb2.Prompt
    difficulty: float | None
    fingerprint: str


def load_prompts(
    source: DataSourceConfig,
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    field: str = "data.train",
    domains: Collection[str] | None = None,
    held_out: Collection[str] = frozenset(),
    quarantine: QuarantineSink | None = None,
) -> PromptSet:
    """Reads, checks and renders the first num_prompts good rows of a source (all of them if it is 0).

    domains: the domains with a reward chain, None for any; held_out: fingerprints of questions to leave out (those
    of the validation set); quarantine takes one record for each row set aside. Raises DataError when the source
    cannot be read, too many rows are bad, or no prompt is left.
    """
    columns = Columns(source, ("question", "answer"), ("difficulty", "domain", "id"))
    builder = _Builder(source, data, tokenizer, columns, domains)
    bad = Quarantine(field, quarantine)
    built: list[_Built] = []
    num_held_out = 0
    for item in _build_all(open_source(source, columns.needed).rows(), builder, bad):
        if item.fingerprint in held_out:
            num_held_out += 1
            continue
        built.append(item)
        if source.num_prompts and len(built) == source.num_prompts:
            break
    bad.check(data.max_bad_rows)
    if not built:
        raise DataError(
            f"{field} has no usable row ({bad.num_rows} read, {bad.num_bad} set aside, {num_held_out} held out).",
            field=field,
            fix="Check the path and the split; quarantine.jsonl in the run folder lists the rows set aside.",
        )
    return _prompt_set(built, bad, num_held_out)


def _build_all(rows: Iterator[Row], builder: "_Builder", bad: Quarantine) -> Iterator[_Built]:
    first_rows: dict[str, int] = {}
    for row in rows:
        bad.saw()
        try:
            item = builder.build(row)
            earlier = first_rows.setdefault(item.prompt.prompt_id, row.number)
            if earlier != row.number:
                raise BadRow(f"id {item.prompt.prompt_id!r} was used by row {earlier}")
        except BadRow as reason:
            bad.add(row, str(reason))
        else:
            yield item


def _prompt_set(built: list[_Built], bad: Quarantine, num_held_out: int) -> PromptSet:
    known = [item.difficulty for item in built if item.difficulty is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    scaled: list[float | None] = []
    for item in built:
        # Data sets count difficulty in scales of their own (levels 1 to 5): the lowest becomes 0, the highest 1.
        value = None if item.difficulty is None else (item.difficulty - low) / ((high - low) or 1.0)
        scaled.append(value)
        if value is not None:
            item.prompt.difficulty = value
    return PromptSet(
        prompts=tuple(item.prompt for item in built),
        difficulties=tuple(scaled),
        fingerprints=frozenset(item.fingerprint for item in built),
        num_rows=bad.num_rows,
        num_quarantined=bad.num_bad,
        num_held_out=num_held_out,
    )


class _Builder:
    def __init__(
        self,
        source: DataSourceConfig,
        data: DataConfig,
        tokenizer: Tokenizer,
        columns: Columns,
        domains: Collection[str] | None,
    ) -> None:
        self._source = source
        self._max_tokens = data.max_prompt_tokens
        self._renderer = PromptRenderer(data, tokenizer)
        self._columns = columns
        self._domains = domains

    def build(self, row: Row) -> _Built:
        """Raises BadRow with the reason."""
        if row.problem:
            raise BadRow(row.problem)
        question = self._columns.text(row.values, "question").strip()
        answer = self._columns.get(row.values, "answer")
        if answer is None:
            raise BadRow("answer is missing")
        golds = gold_answers(answer, self._source.answer_after)
        prompt = common_pb2.Prompt(
            prompt_id=identity(self._columns.get(row.values, "id"), question, golds),
            domain=self._domain(row),
            gold_answers=golds,
            metadata={**row.metadata, **self._columns.metadata(row.values)},
        )
        try:
            rendered = self._renderer.render(question)
        except DataError as error:
            raise BadRow(error.message) from error
        if len(rendered.token_ids) > self._max_tokens:
            raise BadRow(f"prompt has {len(rendered.token_ids)} tokens, data.max_prompt_tokens is {self._max_tokens}")
        if not rendered.token_ids:
            raise BadRow("prompt has no tokens")
        prompt.parts.extend(rendered.parts)
        prompt.token_ids.extend(rendered.token_ids)
        return _Built(prompt, difficulty(self._columns.get(row.values, "difficulty")), fingerprint(question))

    def _domain(self, row: Row) -> str:
        given = self._columns.get(row.values, "domain")
        domain = self._source.domain if given is None else checked_text(given, "domain").strip()
        if self._domains is not None and domain not in self._domains:
            raise BadRow(f"domain {domain!r} has no reward chain")
        return domain
