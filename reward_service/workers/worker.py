"""The life of a worker process: forked by the zygote, it confines itself, then answers tasks until its socket ends.

It answers one item at a time, in order, and each answer is sent before the next item is begun: the first item
without an answer is always the one being worked on, so a kill is charged to the right one.
"""

import gc
import os
import random
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

from crescendo.common.errors import RequestError
from crescendo.proto.v1 import common_pb2, reward_pb2
from crescendo.reward_service.judge.messages import program_message, read_outcome
from crescendo.reward_service.sandbox import protocol
from crescendo.reward_service.scorers import Outcome, Sample, SandboxScorer, Scorer, resolve_chain
from crescendo.reward_service.workers import confine
from crescendo.reward_service.workers.files import restrict_files
from crescendo.reward_service.workers.frames import FrameReader, frame

MAX_TASK_BYTES = 64 * confine.MIB
MAX_DETAIL = 256
_READ_BYTES = 1 << 18

Chain = list[tuple[Scorer | SandboxScorer, Any]]


def run_worker(descriptor: int, memory_bytes: int, parent: int) -> None:
    """Serves tasks from a stream socket until it ends. Never returns to the zygote's code: the caller exits.

    parent: the zygote's process id.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    confine.close_descriptors(keep=descriptor)
    confine.confine(memory_bytes)
    restrict_files()
    confine.die_with_parent(signal.SIGKILL, parent)  # after the change of credentials, which may clear it
    random.seed()
    gc.enable()
    chains: dict[bytes, Chain] = {}
    reader = FrameReader(MAX_TASK_BYTES)
    with socket.socket(fileno=descriptor) as pipe:
        while data := pipe.recv(_READ_BYTES):
            reader.feed(data)
            for payload in reader.payloads():
                task = reward_pb2.WorkerTask.FromString(payload)
                answer = answer_task(task, chains)
                pipe.sendall(frame(answer.SerializeToString()))


def answer_task(task: reward_pb2.WorkerTask, chains: dict[bytes, Chain]) -> reward_pb2.WorkerAnswer:
    """Applies an item's chain; what a scorer raises becomes a verdict. chains: those resolved before."""
    started_s = time.perf_counter()
    answer = reward_pb2.WorkerAnswer(sequence=task.sequence)
    confine.limit_cpu(task.deadline_seconds)
    try:
        chain = _chain_of(task.item, chains)
    except RequestError as error:
        answer.fault.CopyFrom(
            common_pb2.ErrorDetail(code="RequestError", message=error.message, field=error.field, fix=error.fix)
        )
        return answer
    sample = _sample(task.item)
    ended = {runs.link: [read_outcome(outcome) for outcome in runs.outcomes] for runs in task.ended}
    for link, ((scorer, options), spec) in enumerate(zip(chain, task.item.chain, strict=True)):
        outcome = Outcome(scorer.low, common_pb2.VERDICT_SKIPPED)
        if not ended or link in ended:
            outcome = _apply(scorer, options, sample, answer, link, ended.get(link, ()))
        answer.components.append(
            common_pb2.RewardComponent(
                name=spec.name,
                raw=outcome.raw,
                weight=spec.weight,
                verdict=outcome.verdict,
                detail=printable(outcome.detail),
            )
        )
    answer.seconds = time.perf_counter() - started_s
    return answer


def _apply(
    scorer: Scorer | SandboxScorer,
    options: Any,
    sample: Sample,
    answer: reward_pb2.WorkerAnswer,
    link: int,
    ended: Sequence[protocol.Outcome],
) -> Outcome:
    try:
        if isinstance(scorer, Scorer):
            return scorer.score(sample, options)
        step = scorer.step(sample, options, ended)
        if isinstance(step, Outcome):
            return step
        answer.needed.add(link=link, programs=[program_message(program) for program in step])
        return Outcome(scorer.low, common_pb2.VERDICT_SKIPPED)
    except MemoryError:
        answer.retire = True
        return Outcome(scorer.low, common_pb2.VERDICT_SANDBOX_ERROR, "out of memory")
    except Exception as error:  # noqa: BLE001 - hostile text may raise anything in a library; it is named in the result
        return Outcome(scorer.low, common_pb2.VERDICT_SANDBOX_ERROR, f"{type(error).__name__}: {error}"[:MAX_DETAIL])


def _chain_of(item: reward_pb2.ScoreItem, chains: dict[bytes, Chain]) -> Chain:
    key = b"\0".join(spec.SerializeToString(deterministic=True) for spec in item.chain)
    found = chains.get(key)
    if found is None:
        found = chains[key] = resolve_chain(item.chain)
    return found


def _sample(item: reward_pb2.ScoreItem) -> Sample:
    return Sample(
        text=item.response.decode("utf-8", "replace"),
        gold_answers=tuple(item.gold_answers),
        metadata=dict(item.metadata),
        prompt=item.prompt.decode("utf-8", "replace"),
        num_tokens=item.num_tokens,
        finish_reason=item.finish_reason,
        token_ids=item.token_ids,
    )


def printable(text: str) -> str:
    """At most MAX_DETAIL characters, without control characters or lone surrogates: details reach terminals."""
    cut = text[:MAX_DETAIL]
    return cut if cut.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in cut)


def preload(names: Sequence[str]) -> None:
    """Imports modules, for the zygote: its workers then have them."""
    for name in names:
        __import__(name)
    gc.collect()
    gc.freeze()
    gc.disable()


def exit_now(code: int) -> None:
    """Ends the process without the zygote's exit handlers."""
    os._exit(code)
