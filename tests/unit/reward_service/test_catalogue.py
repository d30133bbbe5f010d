"""docs/rewards.md and common/config/scorers.json say what the registry says."""

import dataclasses
from pathlib import Path

import pytest

from crescendo.common.config import scorers
from crescendo.common.errors import RequestError
from crescendo.proto.v1.reward_pb2 import ScorerSpec
from crescendo.reward_service.scorers import (
    GROUP_SCORERS,
    REMOTE_SCORERS,
    SANDBOX_SCORERS,
    SCORERS,
    catalogue,
    check_chain,
)
from crescendo.reward_service.scorers.registry import INTERNAL
from crescendo.reward_service.typed_options import kind_name

REPOSITORY = Path(__file__).parents[3]
ALL = {**SCORERS, **SANDBOX_SCORERS, **REMOTE_SCORERS, **GROUP_SCORERS}


def test_the_generated_files_are_current() -> None:
    assert catalogue.main(["--check", str(REPOSITORY)]) == 0


def test_stale_files_are_found_and_rewritten(tmp_path: Path) -> None:
    assert catalogue.main(["--check", str(tmp_path)]) == 1
    assert catalogue.main([str(tmp_path)]) == 0
    assert catalogue.main(["--check", str(tmp_path)]) == 0
    (tmp_path / catalogue.DATA).write_text("[]")
    assert catalogue.main(["--check", str(tmp_path)]) == 1


def test_the_catalogue_is_the_registry() -> None:
    known = scorers.catalogue()
    assert set(known) == set(ALL) - INTERNAL
    for name, facts in known.items():
        scorer = ALL[name]
        assert (facts.low, facts.high, facts.source) == (scorer.low, scorer.high, scorer.source)
        fields = {field.name: field for field in dataclasses.fields(scorer.options)}
        assert set(facts.options) == set(fields)
        for option, field in fields.items():
            assert facts.options[option].kind == kind_name(field)
            assert facts.options[option].default == field.default
            assert facts.options[option].rule == field.metadata["rule"]


@pytest.mark.parametrize("name", ALL)
def test_every_scorer_is_documented(name: str) -> None:
    scorer = ALL[name]
    assert scorer.low < scorer.high
    assert len(scorer.source) > 10
    for field in dataclasses.fields(scorer.options):
        assert len(field.metadata["rule"].doc) > 10, f"{name}.{field.name}"


def test_what_the_service_puts_into_chains_itself_is_refused() -> None:
    for name in INTERNAL:
        with pytest.raises(RequestError, match="there is no scorer"):
            check_chain([ScorerSpec(name=name, weight=1.0)])


def test_a_misspelt_scorer_is_met_with_its_neighbour() -> None:
    with pytest.raises(RequestError) as caught:
        check_chain([ScorerSpec(name="math_anser", weight=1.0)])
    assert caught.value.fix == "Did you mean math_answer?"
