"""What `helm test` asks of the operator."""

import socket
import sys
import time
from collections.abc import Iterator

import pytest

from crescendo.common.metrics import MetricsServer
from crescendo.controller.operator import probe
from crescendo.controller.operator.metrics import Counts


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def address(counts: Counts) -> Iterator[str]:
    """The operator's metrics, as it serves them."""
    server = MetricsServer(lambda: counts.families(0))
    server.start("127.0.0.1", 0)
    yield f"127.0.0.1:{server.port}"
    server.close()


def test_an_operator_that_lists_jobs_is_well(counts: Counts, address: str) -> None:
    assert "has never listed RLJobs" in probe.look(address, 30)
    counts.saw([{"phase": "Running", "gpus": 8}])
    assert probe.look(address, 30) == ""


def test_one_that_stopped_listing_is_not(counts: Counts, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts.saw([])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 100)
    assert "listed RLJobs 100 s ago" in probe.look(address, 30)
    assert probe.look(address, 60) == ""


def test_the_command_waits_for_the_first_listing(
    counts: Counts, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["probe", address, "--resync", "30", "--patience", "20"])
    monkeypatch.setattr(time, "sleep", lambda seconds: counts.saw([]))
    assert probe.main() == 0
    assert capsys.readouterr().out == "operator: lists RLJobs\n"


def test_the_command_gives_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{found.getsockname()[1]}"  # bound, and nobody listens
    monkeypatch.setattr(sys, "argv", ["probe", nobody, "--patience", "0"])
    assert probe.main() == 1
    assert f"{nobody} does not answer" in capsys.readouterr().out
