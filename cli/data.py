"""`crescendo data check|dedupe|filter|difficulty`: a prompt set goes in, what is kept and a report come out.

The filters are reward_service/data's; this reads and writes files (data_files.py), starts what grades and generates
(data_services.py), and shows how far it is. Every row that goes has its rule and reason in OUT.removed.jsonl; counts
are in OUT.report.json.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from crescendo.cli.data_files import Entry, Output, PromptFile, default_out
from crescendo.cli.data_progress import Progress
from crescendo.cli.exits import Exit
from crescendo.common.errors import DataError
from crescendo.common.runfolder import write_atomically
from crescendo.reward_service.data import (
    CheckLimits,
    Checks,
    NearDuplicates,
    Overlap,
    Question,
    Refusal,
    Report,
    answer_refused,
    kind_refused,
)

Judge = Callable[[Question], Refusal | None]
GRADED_AT_ONCE = 512


def check(options: argparse.Namespace) -> int:
    """Checks every row; exit code 2 when some are bad."""
    checks = Checks(CheckLimits(options.max_question, options.max_answer))
    report = _filter(options, "check", checks.refused, Path(options.out) if options.out else None)
    return Exit.BAD_INPUT if report.num_removed else Exit.DONE


def dedupe(options: argparse.Namespace) -> int:
    """Leaves out overlaps with test sets, then near duplicates."""
    overlap = Overlap(options.ngram, options.overlap)
    for path in options.against:
        for entry in PromptFile(path, options, needs_answer=False).entries():
            if entry.question is not None:
                overlap.add(entry.question)
    near = NearDuplicates(options.threshold, options.shingle, same_answer=options.same_answer)
    _filter(options, "dedupe", lambda question: overlap.refused(question) or near.refused(question), _out(options))
    return Exit.DONE


def filter_kinds(options: argparse.Namespace) -> int:
    """Leaves out kinds of question that cannot be verified, then answers that the grader cannot tell to be right."""
    from crescendo.cli.data_services import Services

    def kind(question: Question) -> Refusal | None:
        found = kind_refused(question)
        if found is None and options.strict_answers:
            reasons = [answer_refused(gold) for gold in question.golds]
            found = Refusal("ungradable", reasons[0]) if all(reasons) else None
        return None if found is None or found.rule in options.keep else found

    prompts = PromptFile(options.file, options)
    if "ungradable" in options.keep:
        _filter(options, "filter", kind, _out(options), prompts)
        return Exit.DONE
    with Services() as services:
        address = services.start_executor(options.workers, options.scorer)
        asyncio.run(_filter_graded(options, prompts, kind, address))
    return Exit.DONE


def difficulty(options: argparse.Namespace) -> int:
    """Measures pass rates and guesses; leaves out what is beyond the limits."""
    from crescendo.cli.data_difficulty import measure

    return measure(options, _out(options))


# What the actions share -----------------------------------------------------------------------------------


def finish(report: Report, output: Output, options: argparse.Namespace) -> None:
    """Writes the report and prints it; raises DataError when no row is left."""
    if output.report is not None:
        given = {name: value for name, value in vars(options).items() if name != "command"}
        write_atomically(output.report, json.dumps(report.to_json(given), indent=2, ensure_ascii=False) + "\n")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{report.source}: {report.num_rows} rows, {report.num_kept} kept, {report.num_removed} removed")
    if report.removed:
        table = Table("rule", "rows", "first of them", box=None, pad_edge=False)
        for rule, count in report.removed.most_common():
            first = report.examples[rule][0]
            table.add_row(rule, str(count), f"row {first['row']}: {first['reason']}"[:160])
        console.print(table, markup=False)
    for name, value in report.facts.items():
        console.print(f"{name.replace('_', ' ')}: {value}", markup=False)
    if output.out is not None:
        console.print(f"kept: {output.out}\nremoved: {output.removed}\nreport: {output.report}", markup=False)
    if not report.num_kept:
        raise DataError(
            f"no row of {report.source} is left.", field="file", fix="Look at the reasons; --keep or limits may help."
        )


def refuse(report: Report, output: Output, entry: Entry, refusal: Refusal) -> None:
    """Counts a row that goes, and writes why."""
    output.remove(report.remove(refusal, Path(entry.row.file).name, entry.row.number, entry.excerpt))


def lengths(questions: Iterable[int]) -> dict[str, int]:
    """Smallest, median and largest."""
    found = sorted(questions)
    return {"least": found[0], "median": found[len(found) // 2], "most": found[-1]} if found else {}


def batches(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    """Consecutive entries."""
    iterator = iter(entries)
    while batch := list(islice(iterator, size)):
        yield batch


def _out(options: argparse.Namespace) -> Path:
    action = {"filter_kinds": "filter"}.get(options.command.partition(":")[2], options.command.partition(":")[2])
    return Path(options.out) if options.out else default_out(options.file, action)


def _filter(
    options: argparse.Namespace, action: str, judge: Judge, out: Path | None, prompts: PromptFile | None = None
) -> Report:
    """Reads, judges and writes row by row."""
    prompts = prompts or PromptFile(options.file, options)
    report = Report(f"data {action}", options.file)
    started_s = time.monotonic()
    characters: list[int] = []
    with Output(out, force=options.force) as output, Progress(action, prompts.count(), plain=options.plain) as progress:
        for entry in prompts.entries():
            refusal = Refusal("bad_row", entry.reason) if entry.question is None else judge(entry.question)
            if refusal is None and entry.question is not None:
                report.keep()
                output.keep(entry)
                characters.append(len(entry.question.text))
            elif refusal is not None:
                refuse(report, output, entry, refusal)
            progress.advance(1, f"{report.num_kept} kept")
        report.facts["characters_of_kept_questions"] = lengths(characters)
        report.seconds = time.monotonic() - started_s
    finish(report, output, options)
    return report


async def _filter_graded(options: argparse.Namespace, prompts: PromptFile, kind: Judge, address: str) -> None:
    """As `_filter`, and what is left is graded against itself: a gold answer must be right by its own grader."""
    from crescendo.cli.data_services import grader_at

    report = Report("data filter", options.file)
    started_s = time.monotonic()
    with Output(_out(options), force=options.force) as output:
        with Progress("filter", prompts.count(), plain=options.plain) as progress:
            async with grader_at(address, options) as grader:
                for batch in batches(prompts.entries(), GRADED_AT_ONCE):
                    refusals = [_first_refusal(entry, kind) for entry in batch]
                    asked = [
                        (place, entry.question)
                        for place, entry in enumerate(batch)
                        if entry.question is not None and refusals[place] is None
                    ]
                    answers = [(question, _as_answer(question, options.scorer)) for _, question in asked]
                    for (place, question), is_right in zip(asked, await grader.correct(answers), strict=True):
                        refusals[place] = None if is_right else _ungradable(question, is_right)
                    _settle(report, output, batch, refusals)
                    progress.advance(len(batch), f"{report.num_kept} kept")
        report.seconds = time.monotonic() - started_s
    finish(report, output, options)


def _first_refusal(entry: Entry, kind: Judge) -> Refusal | None:
    return Refusal("bad_row", entry.reason) if entry.question is None else kind(entry.question)


def _as_answer(question: Question, scorer: str) -> str:
    """The first gold answer as a response would give it."""
    return f"\\boxed{{{question.golds[0]}}}" if scorer == "math_answer" else question.golds[0]


def _ungradable(question: Question, is_right: bool | None) -> Refusal:
    shown = question.golds[0][:80]
    if is_right is None:
        return Refusal("not_graded", f"the grader failed on {shown!r}")
    return Refusal("ungradable", f"the grader does not find {shown!r} equal to itself")


def _settle(report: Report, output: Output, batch: Sequence[Entry], refusals: Sequence[Refusal | None]) -> None:
    for entry, refusal in zip(batch, refusals, strict=True):
        if refusal is None:
            report.keep()
            output.keep(entry)
        else:
            refuse(report, output, entry, refusal)
