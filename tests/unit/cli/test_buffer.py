"""`crescendo buffer` on a real server."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from crescendo.buffer import EmbeddedServer, RedisBuffer, connect
from crescendo.cli.main import main
from tests.contract.buffer_cases import new_group


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    server = EmbeddedServer(tmp_path / "buffer")
    yield server.start()
    server.stop()


async def make_run(url: str, run_id: str) -> RedisBuffer:
    buffer = await connect(url, run_id)
    fence = await buffer.acquire_epoch()
    await buffer.open_groups(fence, [new_group(0), new_group(1)])
    await buffer.commit(fence, 0, 3, "checkpoints/3")
    return buffer


async def make_and_leave(url: str, *names: str) -> None:
    for name in names:
        await (await make_run(url, name)).close()


def test_runs_are_listed_and_shown(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["buffer", "ls", "--url", url]) == 0
    assert "no runs" in capsys.readouterr().out
    asyncio.run(make_and_leave(url, "one", "two"))
    assert main(["buffer", "ls", "--url", url, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["run_id"], one["counts"]["groups.open"], one["connections"]) for one in listed] == [
        ("one", 2, 0),
        ("two", 2, 0),
    ]
    assert main(["buffer", "show", "one", "--url", url]) == 0
    shown = capsys.readouterr().out
    assert "branch 0, iteration 3, checkpoints/3" in shown
    assert "epoch 1" in shown
    assert main(["buffer", "show", "on", "--url", url]) == 1
    assert "buffer ls" in capsys.readouterr().err


def test_a_run_is_removed_after_a_question_and_the_others_stay(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(make_and_leave(url, "one", "one-b"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert main(["buffer", "rm", "one", "--url", url]) == 1
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(["buffer", "rm", "one", "--url", url]) == 0
    assert "nothing removed" in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert main(["buffer", "rm", "one", "--url", url]) == 0
    assert "keys removed" in capsys.readouterr().out
    assert main(["buffer", "ls", "--url", url, "--json"]) == 0
    assert [one["run_id"] for one in json.loads(capsys.readouterr().out)] == ["one-b"]


def test_a_run_that_is_held_is_not_removed(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        buffer = await make_run(url, "held")
        assert await asyncio.to_thread(main, ["buffer", "rm", "held", "--url", url, "--yes"]) == 1
        assert "connections of its processes" in capsys.readouterr().err
        assert await asyncio.to_thread(main, ["buffer", "rm", "held", "--url", url, "--yes", "--force"]) == 0
        await buffer.close()

    asyncio.run(scenario())


def test_the_login_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["buffer", "acl", "--user", "mine", "--run-id", "one"]) == 0
    assert capsys.readouterr().out.startswith("ACL SETUSER mine on >PASSWORD resetkeys ~{crescendo:one}:*")


def test_a_typo_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["buffer", "list"])
    assert ended.value.code == 2
