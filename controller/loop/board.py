"""The run's notice board: status, phases, metrics, events and samples, for people and for the run folder.

One writer (the run), any readers (ControllerService). Metrics, events and samples are appended to the run
folder's JSON-lines files as they happen, so that a finished or dead run can be looked at too.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from crescendo.common.runfolder import RunFolder
from crescendo.common.telemetry import JsonlWriter, read_jsonl
from crescendo.proto.v1 import common_pb2, controller_pb2

log = logging.getLogger(__name__)

TIMELINE_SPANS = 400
KEPT_EVENTS = 1000
WAITING = "run.waiting"  # the pulse of a wait: see waits.py
KEPT_SAMPLES = 48


class Board:
    """Holds the live RunStatus and writes the run folder's files."""

    def __init__(self, folder: RunFolder, name: str, *, may_write: Callable[[], bool] = lambda: True) -> None:
        """may_write: whether the run folder is still this controller's; if not, its files are left alone."""
        self._may_write = may_write
        self.status = controller_pb2.RunStatus(
            run_id=folder.run_id(), name=name, phase="start", committed_iteration=-1, eta_seconds=-1
        )
        self.rows: list[controller_pb2.MetricsRow] = [
            _row(number, stored) for number, stored in enumerate(read_jsonl(folder.metrics))
        ]
        earlier = list(read_jsonl(folder.events))
        self.events: deque[controller_pb2.Event] = deque(map(_event, earlier), maxlen=KEPT_EVENTS)
        self.samples: deque[controller_pb2.Sample] = deque(maxlen=KEPT_SAMPLES)
        self.seconds: dict[str, float] = {}
        self._sequence = len(earlier)
        self._spans: deque[controller_pb2.PhaseSpan] = deque(maxlen=TIMELINE_SPANS)
        self._begun = time.monotonic()
        self._metrics_file = JsonlWriter(folder.metrics)
        self._events_file = JsonlWriter(folder.events)
        self._samples_file = JsonlWriter(folder.samples)
        self._attestations_file = JsonlWriter(folder.attestations)

        self._held: list[str] = []
        self._told_at = self._phase_begun = self._begun

    @property
    def held(self) -> str:
        """Why the run stands still; empty when it does not."""
        return self._held[0] if self._held else ""

    def hold(self, reason: str) -> bool:
        """The run stands still from now on; returns whether it went until now."""
        self._held.append(reason)
        return len(self._held) == 1

    def release(self, reason: str) -> None:
        """One reason to stand still is gone."""
        self._held.remove(reason)

    @property
    def silent_s(self) -> float:
        """Seconds since the last event."""
        return time.monotonic() - self._told_at

    def phase_age(self) -> str:
        """How long the phase has lasted, and why the run stands still if it does: for a message."""
        held = f"; paused: {self.held}" if self._held else ""
        return f" after {time.monotonic() - self._phase_begun:.0f} s{held}"

    @property
    def elapsed_s(self) -> float:
        """Seconds since this controller started."""
        return time.monotonic() - self._begun

    @contextmanager
    def phase(self, name: str, iteration: int = 0) -> Iterator[None]:
        """Marks a phase: it is the status while it lasts, a span of the time line afterwards."""
        begun = self.elapsed_s
        self._phase_begun = time.monotonic()
        self.status.phase = name
        self.status.phase_progress = 0.0
        try:
            yield
        finally:
            ended = self.elapsed_s
            self.seconds[name] = self.seconds.get(name, 0.0) + ended - begun
            self._spans.append(
                controller_pb2.PhaseSpan(phase=name, iteration=iteration, start_seconds=begun, end_seconds=ended)
            )

    def event(
        self, kind: str, message: str, *, severity: str = "info", facts: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        """Records something that people should know, with the numbers that caused it (facts and more)."""
        numbers = {**(facts or {}), **more}
        self._sequence += 1
        stored = {
            "sequence": self._sequence,
            "unix_seconds": time.time(),
            "kind": kind,
            "message": message,
            "severity": severity,
            "facts": {
                key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in numbers.items()
            },
        }
        self._told_at = time.monotonic()
        self._write(self._events_file, stored)
        if kind == WAITING and self.events and self.events[-1].kind == WAITING:
            self.events.pop()  # a long wait does not push out what happened before it
        self.events.append(_event(stored))
        self.status.message = message
        log.log(
            {"warning": logging.WARNING, "error": logging.ERROR}.get(severity, logging.INFO), "%s: %s", kind, message
        )

    def metrics(self, stage: str, values: Mapping[str, float]) -> None:
        """Appends a row, without what JSON has no number for; the status shows the newest value of each."""
        finite = {key: float(value) for key, value in values.items() if abs(value) < float("inf")}
        stored = {"stage": stage, "unix_seconds": time.time(), **finite}
        self._write(self._metrics_file, stored)
        self.rows.append(_row(len(self.rows), stored))
        self.status.metrics.update(finite)

    def sample(self, sample: controller_pb2.Sample) -> None:
        """Keeps a scored response for people to read."""
        self.samples.append(sample)
        self._write(self._samples_file,
            {
                "trajectory_id": sample.trajectory_id,
                "iteration": sample.iteration,
                "prompt": sample.prompt,
                "response": sample.response,
                "gold_answer": sample.gold_answer,
                "reward": sample.reward,
                "finish_reason": common_pb2.FinishReason.Name(sample.finish_reason),
                "num_tokens": sample.num_tokens,
                "num_segments": sample.num_segments,
                "components": [
                    {"name": part.name, "raw": part.raw, "weight": part.weight,
                     "verdict": common_pb2.Verdict.Name(part.verdict)}
                    for part in sample.components
                ],
            }
        )  # fmt: skip

    def attestation(self, worker_id: str, attestation: common_pb2.Attestation, canary_difference: float) -> None:
        """Records that an engine proved a weight version; written before the engine is admitted."""
        self._write(
            self._attestations_file,
            {
                "unix_seconds": time.time(),
                "epoch": self.status.fence.epoch,
                "worker_id": worker_id,
                "version": attestation.version,
                "digest": f"{attestation.digest:016x}",
                "canary_difference": canary_difference,
            },
        )

    def _write(self, file: JsonlWriter, row: Mapping[str, Any]) -> None:
        if self._may_write():
            file.write(row)

    def snapshot(self) -> controller_pb2.RunStatus:
        """A copy of the status with the time line and the clock."""
        copy = controller_pb2.RunStatus()
        copy.CopyFrom(self.status)
        copy.elapsed_seconds = self.elapsed_s
        if self._held:
            copy.paused, copy.message = True, f"paused: {self.held}"
        copy.timeline.extend(self._spans)
        return copy

    def close(self) -> None:
        """Ends the files."""
        for file in (self._metrics_file, self._events_file, self._samples_file, self._attestations_file):
            file.close()


def _row(number: int, stored: Mapping[str, Any]) -> controller_pb2.MetricsRow:
    values = {key: value for key, value in stored.items() if isinstance(value, int | float)}
    return controller_pb2.MetricsRow(row=number, stage=str(stored.get("stage", "")), values=values)


def _event(stored: Mapping[str, Any]) -> controller_pb2.Event:
    return controller_pb2.Event(
        sequence=stored["sequence"],
        unix_seconds=stored["unix_seconds"],
        kind=stored["kind"],
        message=stored["message"],
        facts=stored["facts"],
        severity=stored["severity"],
    )
