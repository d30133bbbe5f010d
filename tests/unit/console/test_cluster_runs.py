"""What a run says of itself, asked by the cluster's console over real gRPC; curves of what it said."""

import math
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.rpc import serve
from crescendo.console.cluster.curves import HEIGHT, MAX_POINTS, WIDTH, curves, present_branch, thinned
from crescendo.console.cluster.runs import KEPT_ROWS, ControllerRuns, charted, cut, status_of
from crescendo.proto.v1 import controller_pb2 as pb
from crescendo.proto.v1 import controller_pb2_grpc
from tests.unit.console.cluster_fakes import metric_rows, rljob

SERVICE = "crescendo.v1.ControllerService"


class Run(controller_pb2_grpc.ControllerServiceServicer):
    """A run's controller with rows; limits: what it was asked for."""

    def __init__(self) -> None:
        self.rows = list(metric_rows(1200))
        self.status = pb.RunStatus(name="math", phase="rollout")
        self.asked: list[tuple[int, int]] = []

    async def GetStatus(self, request: Any, context: Any) -> pb.GetRunStatusResponse:
        return pb.GetRunStatusResponse(status=self.status)

    async def ListMetrics(self, request: Any, context: Any) -> pb.ListMetricsResponse:
        self.asked.append((request.after_row, request.limit))
        return pb.ListMetricsResponse(rows=self.rows[request.after_row :][: request.limit])

    async def ListEvents(self, request: Any, context: Any) -> pb.ListEventsResponse:
        return pb.ListEventsResponse(events=[pb.Event(sequence=n, kind="tick") for n in range(100)])

    async def ListSamples(self, request: Any, context: Any) -> pb.ListSamplesResponse:
        return pb.ListSamplesResponse(samples=[pb.Sample(response="x" * 100_000)] * 9)


@pytest.fixture
async def run(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Run, ControllerRuns]]:
    monkeypatch.delenv("CRESCENDO_IDENTITY", raising=False)
    monkeypatch.setattr("crescendo.console.cluster.runs.PATIENCE_S", 60.0)  # a busy machine is no finding
    servicer = Run()

    def register(server: grpc.aio.Server) -> None:
        controller_pb2_grpc.add_ControllerServiceServicer_to_server(servicer, server)

    server = await serve(register, [SERVICE])
    yield servicer, ControllerRuns(lambda job: server.address)
    await server.stop(0.1)


async def test_a_run_is_read_in_pages_and_then_only_what_is_new(run: tuple[Run, ControllerRuns]) -> None:
    servicer, runs = run
    seen = await runs.look(rljob(), samples=True)
    assert seen.live
    assert (len(seen.rows), len(seen.events), len(seen.samples)) == (1200, 30, 4)
    assert servicer.asked == [(0, 1000), (1000, 1000)]
    servicer.rows.extend(metric_rows(1))
    await runs.look(rljob(), samples=False)
    assert servicer.asked[2:] == [(1200, 1000)]
    ended = await runs.look(rljob(phase="Succeeded"), samples=True)
    assert (ended.live, len(ended.rows), ended.samples) == (False, 1201, ()), "the curves stay"
    again = await runs.look(rljob(attempt=3), samples=False)
    assert len(again.rows) == 1201, "another attempt tells its rows anew"


async def test_an_answer_without_end_is_not_taken_in(run: tuple[Run, ControllerRuns]) -> None:
    servicer, runs = run
    servicer.status.message = "x" * (9 << 20)
    seen = await runs.look(rljob(), samples=False)
    assert not seen.live
    assert seen.problem
    servicer.status.message = ""
    servicer.rows = list(metric_rows(KEPT_ROWS + 500))
    assert len((await runs.look(rljob(), samples=False)).rows) == KEPT_ROWS


async def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crescendo.console.cluster.runs.PATIENCE_S", 0.2)
    seen = await ControllerRuns(lambda job: "127.0.0.1:1").look(rljob(), samples=True)
    assert not seen.live
    assert seen.problem
    assert [stage.state for stage in seen.status.stages] == ["done", "active", "waiting"]


def test_the_job_itself_says_its_stages() -> None:
    ended = rljob(phase="Succeeded")
    ended["status"]["progress"]["stage"] = "context-24k"
    assert [stage.state for stage in status_of(ended).stages] == ["done", "done", "done"]
    new = rljob()
    del new["status"]
    assert [stage.max_response_tokens for stage in status_of(new).stages] == [8192, 16384, 24576]


def test_messages_are_cut() -> None:
    status = pb.RunStatus(name="n" * 10_000, eta_seconds=math.inf, phase_progress=math.nan)
    status.metrics.update({"good": 1.0, "bad": math.nan, **{f"m{n}": 1.0 for n in range(2000)}})
    for number in range(2000):
        status.timeline.add(phase="\x1bp", end_seconds=math.nan if number == 1999 else number)
    cut(status)
    assert len(status.name) < 5000
    assert (status.eta_seconds, status.phase_progress) == (0.0, 0.0)
    assert len(status.metrics) <= 512
    assert "bad" not in status.metrics
    assert len(status.timeline) == 512
    assert (status.timeline[-1].phase, status.timeline[-1].end_seconds) == ("\ufffdp", 0.0)


# Curves -----------------------------------------------------------------------------------------------------


def row(iteration: float, stage: str = "s", **values: float) -> pb.MetricsRow:
    return charted(pb.MetricsRow(stage=stage, values={"iteration": iteration, **values}))


def test_stages_are_marked_where_they_begin() -> None:
    rows = [row(n, "short" if n < 50 else "long", reward=n / 100) for n in range(1, 100)]
    (curve,) = curves([*rows, row(99, "end", reward=0.99)])
    assert [name for _, name in curve.changes] == ["short", "long"]
    assert curve.changes[1][0] == pytest.approx(44 + 49 / 98 * 424, abs=0.1)
    assert curve.last == "0.990"


def test_what_a_rollback_gave_up_is_not_drawn() -> None:
    kept = present_branch([row(n) for n in (1, 2, 3, 4, 3, 4, 5)])
    assert [one.values["iteration"] for one in kept] == [1, 2, 3, 3, 4, 5]


def test_rows_before_the_first_iteration_make_no_curve() -> None:
    assert curves([]) == []
    assert curves([row(0, validation_accuracy=0.1)]) == []
    assert [curve.key for curve in curves([row(1, reward=0.0)])] == ["reward"]


values = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(values, st.sampled_from(["reward", "length", "accuracy", "clip_ratio"]), values)))
def test_whatever_a_run_says_is_drawn_within_the_frame(told: list[tuple[float, str, float]]) -> None:
    rows = [row(iteration, **{name: value}) for iteration, name, value in told]
    for curve in curves([one for one in rows if "iteration" in one.values]):
        for line in curve.lines:
            for place in line.points.split():
                x, y = map(float, place.split(","))
                assert 0 <= x <= WIDTH
                assert 0 <= y <= HEIGHT
        assert len(curve.y_ticks) <= 12
        assert len(curve.x_ticks) <= 12


@given(st.integers(0, 3000))
def test_long_curves_are_thinned_to_means(count: int) -> None:
    points = [(float(n), 1.0) for n in range(count)]
    found = thinned(points)
    assert len(found) <= MAX_POINTS
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    assert all(y == pytest.approx(1.0) for _, y in found)
