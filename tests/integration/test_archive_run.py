"""A whole run with its archiver: the archive of a finished run is complete, whatever died on the way."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from crescendo.buffer.archive.reader import Archive
from crescendo.cli.lineage import collect
from crescendo.cli.main import main
from tests.integration.light_run import LightRun

SETTINGS = ("archive.enabled=true", "archive.every_s=0.05", "data.chat_template=false")


def rows_of(run: LightRun) -> list[dict[str, Any]]:
    archive = Archive.open(str(run.folder.archive))
    return [{**row, "survives": archive.survives(row)} for group in archive.groups() for row in group.rows]


@pytest.mark.parametrize(
    "deaths", [(), ("archive.written:1", "archive.named:2", "archive.trimmed:1", "archive.writing:3")]
)
def test_the_archive_of_a_finished_run_is_complete(tmp_path: Path, deaths: tuple[str, ...]) -> None:
    run = LightRun.prepare(tmp_path, *SETTINGS)
    for number, death in enumerate(deaths):
        assert run.live(f"{death}:{tmp_path / str(number)}") == -9
    assert run.live() == 0, run.last_words()

    rows = rows_of(run)
    assert max(Counter(row["trajectory_id"] for row in rows).values()) == 1
    trained: defaultdict[int, set[str]] = defaultdict(set)
    for row in rows:
        if row["survives"]:
            trained[row["consumed_iteration"]].add(row["trajectory_id"])
    lineage = collect(run.folder)
    seen = _seen_by_the_weights(run)
    assert trained == seen, "as the weights remember it"
    assert lineage.source == "archive"
    assert set(lineage.lineage.branches) == {1}, "the first stage went back"

    out = tmp_path / "rollouts.jsonl"
    assert main(["export", str(run.folder.root), "--format", "rollouts", "--out", str(out)]) == 0
    assert {json.loads(line)["trajectory_id"] for line in out.read_text().splitlines()} == set().union(*seen.values())


def _seen_by_the_weights(run: LightRun) -> dict[int, set[str]]:
    """Which trajectories trained the final weights, by iteration: the light trainer's weights list them."""
    newest = max(run.folder.checkpoints.glob("commit-*.json"))
    folder = run.folder.checkpoints / json.loads(newest.read_text())["folder"]
    seen: dict[int, set[str]] = {}
    for line in json.loads((folder / "weights.json").read_text()):
        words = line.split()
        if words[0] == "rl":
            seen[int(words[2])] = set(words[4:])
    return seen
