"""`crescendo data difficulty`: pass rates and guesses of a model, question by question, resumable.

    questions -> batches, two at a time -> engine, executor -> OUT.attempts.jsonl (a line a question) -> kept or not

What is measured is written down at once; the same command, started again, measures the rest only.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from crescendo.cli.data import batches, finish, lengths, refuse
from crescendo.cli.data_files import Entry, Output, PromptFile
from crescendo.cli.data_progress import Progress
from crescendo.cli.data_services import Services, grader_at
from crescendo.cli.exits import Exit
from crescendo.common.config.schema import DataConfig
from crescendo.common.errors import DataError
from crescendo.common.rpc import Client, Endpoint
from crescendo.common.service import ServiceSpec
from crescendo.common.telemetry.jsonl import JsonlWriter, read_jsonl
from crescendo.common.tokenizer import Tokenizer
from crescendo.controller.data.rendering import PromptRenderer
from crescendo.proto.v1 import rollout_pb2_grpc
from crescendo.reward_service.data import AttemptOptions, Attempts, Prompts, Question, Refusal, Report, Tally

BATCHES_AT_ONCE = 2
# What decides a measurement; a file of attempts made otherwise is not continued.
_DECISIVE = ("model", "engine", "samples", "guesses", "temperature", "max_tokens", "guess_tokens", "template",
             "guess_template", "guess_prefix", "scorer", "scorer_option")  # fmt: skip


def measure(options: argparse.Namespace, out: Path) -> int:
    """Runs the action; returns the exit code."""
    for name in ("template", "guess_template"):
        if "{question}" not in getattr(options, name):
            raise DataError(f"--{name.replace('_', '-')} does not hold {{question}}.", field=name)
    if not options.samples and not options.guesses:
        raise DataError("--samples and --guesses are both 0; there is nothing to measure.", field="samples")
    prompts = PromptFile(options.file, options)
    tokenizer = Tokenizer.from_folder(Path(options.model))
    asyncio.run(_measure(options, out, prompts, tokenizer))
    return Exit.DONE


async def _measure(options: argparse.Namespace, out: Path, prompts: PromptFile, tokenizer: Tokenizer) -> None:
    report = Report("data difficulty", options.file)
    started_s = time.monotonic()
    tallies: list[Tally] = []
    unopened = Output(out, force=options.force)
    with Journal(out, options) as journal, unopened as output:
        total = prompts.count()
        async with _attempts(options, tokenizer) as attempts:
            with Progress("difficulty", total, plain=options.plain) as progress:
                async for batch, found in _in_order(prompts, attempts, journal, options.batch):
                    for entry, tally in zip(batch, found, strict=True):
                        tallies.append(tally)
                        _settle(report, output, entry, tally, options)
                    progress.advance(len(batch), f"{report.num_kept} kept")
        _summarize(report, tallies)
        report.seconds = time.monotonic() - started_s
    finish(report, output, options)


async def _in_order(
    prompts: PromptFile, attempts: Attempts, journal: "Journal", size: int
) -> AsyncIterator[tuple[list[Entry], list[Tally]]]:
    """Batches with their tallies, in the file's order; the next one is measured while one is given out."""
    running: list[tuple[list[Entry], asyncio.Task[list[Tally]]]] = []
    try:
        for batch in batches(prompts.entries(), size):
            running.append((batch, asyncio.create_task(_tallies(batch, attempts, journal))))
            if len(running) >= BATCHES_AT_ONCE:
                first, task = running.pop(0)
                yield first, await task
        while running:
            first, task = running.pop(0)
            yield first, await task
    finally:
        for _, task in running:
            task.cancel()


async def _tallies(batch: Sequence[Entry], attempts: Attempts, journal: "Journal") -> list[Tally]:
    wanted = [entry.question for entry in batch if entry.question and entry.question.question_id not in journal.known]
    unique = list({question.question_id: question for question in wanted}.values())
    for question, tally in zip(unique, await attempts.tallies(unique) if unique else [], strict=True):
        journal.add(question, tally)
    return [
        Tally(problem=entry.reason) if entry.question is None else journal.known[entry.question.question_id]
        for entry in batch
    ]


def _settle(report: Report, output: Output, entry: Entry, tally: Tally, options: argparse.Namespace) -> None:
    refusal = judged(entry, tally, options.min_pass_rate, options.max_pass_rate)
    if refusal is not None:
        refuse(report, output, entry, refusal)
        return
    report.keep()
    extra = {"num_guessed": tally.num_guessed} if tally.num_guesses else {}
    output.keep(entry, {"pass_rate": tally.pass_rate, "num_samples": tally.num_samples, **extra})


def judged(entry: Entry, tally: Tally, lowest: float, highest: float) -> Refusal | None:
    """Why a measured question goes, if it does."""
    if entry.question is None:
        return Refusal("bad_row", entry.reason)
    if tally.problem:
        return Refusal("not_tried", tally.problem)
    if tally.num_guessed:
        return Refusal("guessable", f"{tally.num_guessed} of {tally.num_guesses} guesses without reasoning were right")
    if not tally.num_samples + tally.num_guesses:
        return Refusal("not_graded", f"the grader failed on all {tally.num_faults} answers")
    rate = tally.pass_rate
    if rate is not None and rate > highest:
        return Refusal("too_easy", f"{tally.num_correct} of {tally.num_samples} answers were right")
    if rate is not None and rate < lowest:
        return Refusal("too_hard", f"{tally.num_correct} of {tally.num_samples} answers were right")
    return None


def _summarize(report: Report, tallies: Sequence[Tally]) -> None:
    rates = [tally.pass_rate for tally in tallies if tally.pass_rate is not None]
    if rates:
        report.facts["mean_pass_rate"] = round(sum(rates) / len(rates), 4)
        report.facts["pass_rates_in_percent"] = lengths(round(100 * rate) for rate in rates)
    report.facts["answers_not_graded"] = sum(tally.num_faults for tally in tallies)


@asynccontextmanager
async def _attempts(options: argparse.Namespace, tokenizer: Tokenizer) -> AsyncIterator[Attempts]:
    """The services, started or reached, behind one object."""
    with Services() as services:
        executor = services.start_executor(options.workers, options.scorer)
        endpoint = Endpoint(options.engine, _token(options.token_file))
        if not options.engine:
            address = services.start_engine(_engine_spec(options))
            endpoint = Endpoint(address, services.token)
        client = Client(endpoint, rollout_pb2_grpc.RolloutServiceStub)
        try:
            async with grader_at(executor, options) as grader:
                yield Attempts(client, grader, _prompts(options, tokenizer), _attempt_options(options))
        finally:
            await client.close()


def _engine_spec(options: argparse.Namespace) -> ServiceSpec:
    given = {name: str(getattr(options, name)) for name in ("max_prompt_tokens", "max_tokens", "kv_cache_gib")}
    return ServiceSpec(
        role="rollout",
        worker_id="rollout-0",
        run_folder="",
        run_id="data",
        token="",
        device=options.device,
        model_path=str(Path(options.model).resolve()),
        options={**given, "dummy": "1"},
    )


def _attempt_options(options: argparse.Namespace) -> AttemptOptions:
    return AttemptOptions(
        num_samples=options.samples,
        num_guesses=options.guesses,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        guess_tokens=options.guess_tokens,
        guess_prefix=options.guess_prefix,
    )


def _prompts(options: argparse.Namespace, tokenizer: Tokenizer) -> Prompts:
    def rendered(template: str, prefix: str) -> Callable[[str], Sequence[int]]:
        config = DataConfig(template=template, chat_template=tokenizer.has_chat_template)
        renderer = PromptRenderer(config, tokenizer)
        tail = tokenizer.encode(prefix) if prefix else []

        def tokens(question: str) -> Sequence[int]:
            found = [*renderer.render(question).token_ids, *tail]
            if len(found) > options.max_prompt_tokens:
                raise DataError(f"prompt has {len(found)} tokens; --max-prompt-tokens is {options.max_prompt_tokens}.")
            return found

        return tokens

    return Prompts(
        sample=rendered(options.template, ""),
        guess=rendered(options.guess_template, options.guess_prefix),
        decode=tokenizer.decode,
        stop_token_ids=tokenizer.eos_token_ids,
    )


def _token(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip() if path else ""
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", field="token-file") from None


class Journal:
    """OUT.attempts.jsonl: what was measured so far. Removed when the command has finished."""

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        self.path = out.with_name(out.name + ".attempts.jsonl")
        decisive = {name: getattr(options, name) for name in _DECISIVE}
        self._key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
        self.known: dict[str, Tally] = {}

    def __enter__(self) -> "Journal":
        for row in read_jsonl(self.path):
            if row.get("key") == self._key:
                with contextlib.suppress(TypeError, KeyError):  # a line of another version is measured again
                    self.known[str(row["id"])] = Tally(**row["tally"])
        self._file = JsonlWriter(self.path)
        return self

    def add(self, question: Question, tally: Tally) -> None:
        """One more question."""
        self.known[question.question_id] = tally
        self._file.write({"key": self._key, "id": question.question_id, "tally": asdict(tally)})

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._file.close()
        if kind is None:
            os.unlink(self.path)
