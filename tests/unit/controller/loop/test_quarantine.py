"""What becomes of engines that were taken out when the controller starts again."""

from pathlib import Path

import pytest

from crescendo.controller.loop.quarantine import PLACE_VARIABLE, Quarantine


def test_a_controller_that_starts_again_keeps_them_out(tmp_path: Path) -> None:
    path = tmp_path / "engines-out.json"
    first = Quarantine(path)
    first.add("rollout-1")
    first.add("rollout-3")
    assert Quarantine(path).engines == {"rollout-1", "rollout-3"}
    first.clear()
    assert Quarantine(path).engines == frozenset()


def test_other_pods_have_other_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "engines-out.json"
    monkeypatch.setenv(PLACE_VARIABLE, "math-1-abcde")
    Quarantine(path).add("rollout-1")
    assert Quarantine(path).engines == {"rollout-1"}
    monkeypatch.setenv(PLACE_VARIABLE, "math-2-fghij")
    assert Quarantine(path).engines == frozenset()
