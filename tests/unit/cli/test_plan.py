"""`crescendo plan`: what it prints, what it refuses, and where it looks for a model's shape."""

import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from crescendo.cli.exits import Exit
from crescendo.cli.main import main
from crescendo.common.config.load import load_config
from crescendo.common.errors import ConfigError
from crescendo.common.planner import Machine, refuse_early, shape_of
from crescendo.common.runfolder import RunFolder
from crescendo.controller import policy
from tests.unit.common.test_planner import LLAMA_8B, QWEN_1_5B

RECIPE = "recipes/deepscaler/recipe.yaml"
QUICK_START = "recipes/quickstart/recipe.yaml"
HUB_NAME = "owner/never-heard-of"


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(QWEN_1_5B))
    return f"model.source={tmp_path}"


def test_a_plan_names_layouts_phases_and_what_to_change(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    fitting = ["plan", RECIPE, "--set", model, "--gpus", "32", "--gpu-memory", "141", "--json"]
    assert main(fitting) == Exit.DONE
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert plan["fix"] == ""
    assert set(plan["layouts"]) == {phase["stage"] for phase in plan["phases"]}
    kept = ["--set", "trainer.recompute=none"]
    assert main(["plan", RECIPE, "--set", model, *kept, "--gpus", "32", "--gpu-memory", "40"]) == Exit.BAD_INPUT
    shown = " ".join(capsys.readouterr().out.split())
    assert "Does not fit: stage context-8k, train: " in shown
    assert "trainer.recompute=full" in shown
    assert "then it fits" in shown


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--gpus", "8"], "--gpu-memory"), (["--gpu-memory", "80"], "--gpus"), (["--gpus", "-1"], "--gpus")],
)
def test_half_a_machine_is_bad_input(flags: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", QUICK_START, *flags]) == Exit.BAD_INPUT
    assert named in capsys.readouterr().err


def test_a_model_of_the_hub_is_asked_for_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(Path(QUICK_START))
    config.model = replace(config.model, source=HUB_NAME)
    assert shape_of(config.model) is None  # a run's first check does not wait for a network

    def answer(url: str, **_: object) -> httpx.Response:
        return httpx.Response(200, json=LLAMA_8B, request=httpx.Request("GET", url))

    monkeypatch.setattr(httpx, "get", answer)
    found = shape_of(config.model, fetch=True)
    assert found is not None
    assert found.num_layers == 32

    def unreachable(url: str, **_: object) -> httpx.Response:
        raise httpx.ConnectError("no network")

    monkeypatch.setattr(httpx, "get", unreachable)
    assert main(["plan", QUICK_START, "--set", f"model.source={HUB_NAME}"]) == Exit.BAD_INPUT
    assert "nor to be had from the hub" in capsys.readouterr().err


def test_a_run_that_cannot_fit_is_refused_with_what_to_change(model: str) -> None:
    config = load_config(Path(QUICK_START), [model])
    refuse_early(config, Machine(0, None, 512 << 30))
    with pytest.raises(ConfigError, match="does not fit") as caught:
        refuse_early(config, Machine(0, None, 4 << 30))
    assert "crescendo plan" in caught.value.fix
    assert "Take a machine with" in caught.value.fix


def test_on_a_ray_cluster_gpus_are_as_large_as_the_run_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere")
    gpus = ["placement.device=gpu", "model.scratch.hidden_size=8192", "model.scratch.ffn_size=32768"]
    refuse_early(load_config(Path(QUICK_START), gpus))
    with pytest.raises(ConfigError, match="a GPU has 8"):
        refuse_early(load_config(Path(QUICK_START), [*gpus, "placement.device_memory_gib=8"]))


def test_a_model_from_the_hub_is_checked_when_it_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = tmp_path / "cache"
    fetched.mkdir()
    (fetched / "config.json").write_text(json.dumps(LLAMA_8B))
    (fetched / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(policy, "_fetch", lambda name, revision: fetched)
    monkeypatch.setattr("crescendo.common.planner.here.memory_limit", lambda: 16 << 30)
    config = load_config(Path(QUICK_START))
    config.model = replace(config.model, source=HUB_NAME)
    with pytest.raises(ConfigError, match="the run does not fit: "):
        policy.prepare_policy(config, RunFolder.create(tmp_path / "run", "test"))
