"""`crescendo data testcases FILE`: makes test cases for coding problems, and leaves out problems that get none.

A row has the problem's statement, its reference solutions and, unless a model writes it, its generator program. What is
kept gets the columns `tests` (as the scorer `code` reads them) and `generator`. The rules are
reward_service/judge/testcases.py's; every program runs in the sandbox.
"""

import argparse
import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from crescendo.cli.data import finish, lengths, refuse
from crescendo.cli.data_files import Entry, Output, PromptFile, default_out
from crescendo.cli.data_progress import Progress
from crescendo.cli.exits import Exit
from crescendo.cli.testcases_options import RULES
from crescendo.common.errors import CrescendoError, DataError, EnvironmentProblem
from crescendo.reward_service.data import Refusal, Report
from crescendo.reward_service.judge.generator_writer import GeneratorWriter, Writing
from crescendo.reward_service.judge.selection import SelectionRules
from crescendo.reward_service.judge.testcases import Generated, Generation, Problem, RunRules, WriteGenerator
from crescendo.reward_service.sandbox.opening import Closed, open_sandbox
from crescendo.reward_service.sandbox.options import SandboxOptions


def testcases(options: argparse.Namespace) -> int:
    """Runs the action."""
    if bool(options.model) != bool(options.engine):
        raise DataError("--model and --engine go together.", field="model", fix="Give both, or neither.")
    rules = RunRules(
        selection=SelectionRules(**{name: getattr(options, name) for name in RULES}),
        case_s=options.case_seconds,
        memory_bytes=options.memory_mib << 20,
        concurrency=2 * SandboxOptions().concurrency,
        seed=options.seed,
    )
    rules.selection.check()
    rules.limits.check()
    asyncio.run(_testcases(options, rules))
    return Exit.DONE


async def _testcases(options: argparse.Namespace, rules: RunRules) -> None:
    prompts = PromptFile(options.file, options, needs_answer=False)
    out = Path(options.out) if options.out else default_out(options.file, "testcases")
    report = Report("data testcases", options.file)
    started_s = time.monotonic()
    totals: Counter[str] = Counter()
    numbers: list[int] = []
    with Output(out, force=options.force) as output:
        async with _generation(options, rules) as generation:
            with Progress("testcases", prompts.count(), plain=options.plain) as progress:
                for entry in prompts.entries():
                    found = await _settle(report, output, entry, generation, options)
                    if found is not None:
                        totals += found.selection.dropped
                        if not found.rule:
                            numbers.append(len(found.selection.inputs))
                    progress.advance(1, f"{report.num_kept} kept")
        report.facts["cases_a_kept_problem"] = lengths(numbers)
        report.facts["cases_dropped"] = dict(totals.most_common())
        report.seconds = time.monotonic() - started_s
    finish(report, output, options)


async def _settle(
    report: Report, output: Output, entry: Entry, generation: Generation, options: argparse.Namespace
) -> Generated | None:
    """Makes the cases of a row and keeps it, or not; returns what was made."""
    try:
        problem = problem_of(entry, options)
        found = await generation.generate(problem)
    except DataError as error:
        refuse(report, output, entry, Refusal("bad_row", error.message))
        return None
    except EnvironmentProblem:
        raise
    except CrescendoError as error:
        refuse(report, output, entry, Refusal("service", error.message))
        return None
    if found.rule:
        refuse(report, output, entry, Refusal(found.rule, found.reason))
        return found
    report.keep()
    tests = {"inputs": list(found.selection.inputs), "outputs": list(found.selection.outputs)}
    output.keep(entry, {"tests": tests, "generator": found.generator})
    return found


def problem_of(entry: Entry, options: argparse.Namespace) -> Problem:
    """The problem in a row; raises DataError for columns that are missing or of the wrong kind."""
    if entry.question is None:
        raise DataError(entry.reason)
    values: Mapping[str, Any] = entry.row.values
    solutions = values.get(options.solutions)
    if not isinstance(solutions, list) or not all(isinstance(solution, str) for solution in solutions):
        raise DataError(f"column {options.solutions!r} is not a list of programs.", field="solutions")
    generator = values.get(options.generator) or ""
    if not isinstance(generator, str):
        raise DataError(f"column {options.generator!r} is not a program.", field="generator")
    question = entry.question
    is_special = bool(values.get(options.special_judge))
    return Problem(question.question_id, question.text, tuple(dict.fromkeys(solutions)), generator, is_special)


@asynccontextmanager
async def _generation(options: argparse.Namespace, rules: RunRules) -> AsyncIterator[Generation]:
    opened = await open_sandbox(SandboxOptions(jail=options.jail))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(opened.sandbox.close)
        if isinstance(opened.sandbox, Closed):
            raise EnvironmentProblem(opened.sandbox.reason, field="sandbox", fix="Run `crescendo doctor`.")
        writer = await stack.enter_async_context(_writer(options)) if options.engine else None
        yield Generation(opened.sandbox, rules, writer)


@asynccontextmanager
async def _writer(options: argparse.Namespace) -> AsyncIterator[WriteGenerator]:
    """The model behind the engine's address."""
    from crescendo.common.config.schema import DataConfig
    from crescendo.common.rpc import Client, Endpoint
    from crescendo.common.tokenizer import Tokenizer
    from crescendo.controller.data.rendering import PromptRenderer
    from crescendo.proto.v1 import rollout_pb2_grpc

    tokenizer = Tokenizer.from_folder(Path(options.model))
    renderer = PromptRenderer(DataConfig(chat_template=tokenizer.has_chat_template), tokenizer)
    client = Client(Endpoint(options.engine, _token(options.token_file)), rollout_pb2_grpc.RolloutServiceStub)
    writing = Writing(
        render=lambda text: renderer.render(text).token_ids,
        decode=tokenizer.decode,
        stop_token_ids=tokenizer.eos_token_ids,
        max_tokens=options.max_tokens,
    )
    try:
        yield GeneratorWriter(client, writing)
    finally:
        await client.close()


def _token(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip() if path else ""
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", field="token-file") from None
