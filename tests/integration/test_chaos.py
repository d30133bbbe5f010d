"""Ten random faults on a real run: kill -9, stops, pauses and cut connections; then the audit from outside."""

import json
from pathlib import Path

import pytest

from tests.integration.chaos_job import run_campaign

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEED = 108  # its plan hits controller, Valkey, raylet, engine, executor, archiver and connections
FAULTS = 10


def test_ten_random_faults_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    code, result, said = run_campaign(tmp_path / "runs", SEED, FAULTS, 600.0, "--within", "3")
    print(said)
    assert code == 0, said
    assert result["held"] == 1
    assert result["faults"] >= FAULTS
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/chaos.json")]
    victims = {hit["victim"] for record in records for hit in record["hits"]}
    assert {"controller", "valkey"} <= victims
