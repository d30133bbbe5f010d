"""What the doctor finds, and that a machine that lacks something stops a run before anything is made."""

import argparse
import importlib.metadata
import socket
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from crescendo.cli import doctor
from crescendo.cli.main import main
from crescendo.common.config import Config
from crescendo.common.errors import EnvironmentProblem
from crescendo.common.planner import here, memory_limit

GIB = 1 << 30


def test_memory_is_judged_by_limit_and_by_what_is_free() -> None:
    assert doctor.memory(8 * GIB, 7 * GIB).level == "ok"
    assert doctor.memory(8 * GIB, 2 * GIB).level == "warn"
    little = doctor.memory(4 * GIB, 4 * GIB)
    assert little.level == "fail"
    assert "4.0 GiB" in little.message
    assert "6 GiB are needed" in little.message
    assert little.fix


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(here, "_CGROUP_LIMITS", (limit, tmp_path / "absent"))
    limit.write_text("max\n")
    assert memory_limit() > GIB
    limit.write_text(f"{GIB // 2}\n")
    assert memory_limit() == GIB // 2


def test_disk_looks_at_the_folder_that_will_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.disk(tmp_path / "not" / "there").level == "ok"
    monkeypatch.setattr(doctor, "MIN_DISK", 1 << 60)
    assert doctor.disk(tmp_path).level == "fail"
    assert str(tmp_path) in doctor.disk(tmp_path / "runs").message


@pytest.mark.parametrize(
    ("system", "level"),
    [
        (("Linux", "x86_64", (3, 11)), "ok"),
        (("Linux", "x86_64", (3, 10)), "fail"),
        (("Linux", "aarch64", (3, 12)), "fail"),
        (("Darwin", "x86_64", (3, 12)), "fail"),
    ],
)
def test_the_system(system: tuple[str, str, tuple[int, int]], level: str) -> None:
    assert doctor.system(*system).level == level


def test_a_port_in_use_is_found() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert doctor.port(number).level == "fail"
        assert str(number) in doctor.port(number).message
    assert doctor.port(0).level == "ok"


def test_packages_are_looked_up_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.package(Requirement("omegaconf>=2")).level == "ok"
    assert doctor.package(Requirement("omegaconf>=99")).level == "warn"
    assert doctor.package(Requirement("no-such-package-at-all")).level == "fail"

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert doctor.engine().level == "fail"


def test_thread_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert doctor.threads(2).level == "warn"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert doctor.threads(2).level == "ok"


def test_the_report_and_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(folder=str(tmp_path))
    monkeypatch.setattr(doctor, "software", lambda: iter(()))
    monkeypatch.setattr(doctor, "MIN_MEMORY", 0)
    assert doctor.doctor(options) == 0
    assert "Ready." in capsys.readouterr().out
    monkeypatch.setattr(doctor, "MIN_MEMORY", 1 << 60)
    assert doctor.doctor(options) == 3
    shown = capsys.readouterr().out
    assert "Not ready: memory." in shown
    assert "Use a larger machine." in shown


@pytest.mark.parametrize("lacking", ["MIN_MEMORY", "MIN_DISK"])
def test_too_little_memory_or_disk_stops_a_run_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lacking: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, lacking, 1 << 60)
    config = Config()
    with pytest.raises(EnvironmentProblem, match="are needed") as caught:
        doctor.preflight(config)
    assert caught.value.exit_code == 3
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "run: {name: try}\nmodel: {source: some/model}\n"
        "steps: [{kind: sft, sft: {data: {name: task, path: clock_sum}}}]\n"
    )
    assert main(["run", str(recipe)]) == 3
    assert "are needed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
