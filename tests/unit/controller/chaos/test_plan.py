"""Plans of faults: the same for a seed, and fair among kinds of processes. Tables: what they say."""

import json
from collections import Counter
from pathlib import Path

import pytest

from crescendo.controller.chaos import RunRecord, table, verdict, write_table
from crescendo.controller.chaos.audit import Broken
from crescendo.controller.chaos.inject import Hit
from crescendo.controller.chaos.plan import KINDS, Fault, plan
from crescendo.controller.chaos.report import BEGIN, END, percentile
from crescendo.controller.chaos.targets import Target


def test_a_seed_names_a_plan() -> None:
    assert list(plan(7, 50)) == list(plan(7, 50))
    assert list(plan(7, 50))[:20] == list(plan(7, 20))
    assert list(plan(7, 50)) != list(plan(8, 50))
    assert set(Counter(fault.kind for fault in plan(1, 300))) == set(KINDS)


def test_each_kind_of_process_is_hit_as_often_however_many_there_are() -> None:
    targets = [Target("valkey", 1, 0.0), *(Target("scorer", pid, 0.0) for pid in range(10, 19))]
    hits = Counter(fault.victim(targets, ()) for fault in plan(3, 2000))
    assert hits[targets[0]] == pytest.approx(1000, rel=0.1)
    assert {target.kind for target in hits if target} == {"valkey", "scorer"}
    assert len(hits) == 10
    assert {fault.victim(targets, ("scorer",)) for fault in plan(3, 50)} == {targets[0]}
    assert next(plan(0, 1)).victim([], ()) is None


def hit(kind: str, victim: str, seconds: float, tokens: int = 0) -> Hit:
    return Hit(Fault(0, kind, 0.0, False, 0.0, 0.0), victim, 1, 100.0, tokens, 100.0 + seconds if seconds else 0.0)


def test_a_table_has_a_row_a_fault_and_victim_and_is_put_between_its_marks(tmp_path: Path) -> None:
    records = [
        RunRecord("a", [hit("kill", "engine", 4.0, 30), hit("kill", "engine", 8.0, 10), hit("stop", "gcs", 0.0)])
    ]
    text = table(records)
    assert "| kill | engine | 2 | 4.0 | 8.0 | 40 |" in text
    assert "| stop | gcs | 1 | - | - | 0 |" in text
    document = tmp_path / "d.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_table(document, "crescendo chaos x", text)
    assert document.read_text() == f"before\n{BEGIN}\n\n    crescendo chaos x\n\n{text}\n\n{END}\nafter\n"
    document.write_text("no marks")
    with pytest.raises(ValueError, match="no lines"):
        write_table(document, "x", text)


def test_a_campaign_holds_only_if_everything_did() -> None:
    good = RunRecord("a", [hit("kill", "engine", 4.0)], finished=True)
    assert verdict([good], 1, 1.0)["held"] == 1
    assert verdict([good], 2, 1.0)["held"] == 0
    assert verdict([RunRecord("a", good.hits, finished=False)], 1, 1.0)["held"] == 0
    lost = RunRecord("a", good.hits, finished=True, broken=[Broken("ledger", "group x is gone.")])
    result = verdict([lost], 1, 1.0)
    assert (result["held"], result["lost"], result["duplicated"]) == (0, 1, 0)
    assert "group x" in json.dumps(result)


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(1, 21)], 0.95) == 19.0
    assert percentile([], 0.5) == 0.0
