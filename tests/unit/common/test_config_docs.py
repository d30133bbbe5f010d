"""Every field is documented, and docs/configuration.md says what the schema says."""

import dataclasses
from pathlib import Path

import pytest

from crescendo.common.config import docs
from crescendo.common.config.fields import Rule

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("section", docs.sections(), ids=lambda kind: kind.__name__)
def test_every_field_has_a_document(section: type) -> None:
    assert section.__doc__
    for field in dataclasses.fields(section):
        rule = field.metadata.get("rule")
        assert isinstance(rule, Rule), f"{section.__name__}.{field.name} is declared without setting()"
        assert len(rule.doc) > 2, f"{section.__name__}.{field.name} has no documentation"


def test_the_document_is_current() -> None:
    assert docs.main(["--check", str(REPOSITORY / "docs" / "configuration.md")]) == 0


def test_a_stale_document_is_found_and_rewritten(tmp_path: Path) -> None:
    target = tmp_path / "docs" / "configuration.md"
    assert docs.main(["--check", str(target)]) == 1
    assert docs.main([str(target)]) == 0
    assert docs.main(["--check", str(target)]) == 0
    target.write_text(target.read_text().replace("max_response_tokens", "max_tokens"))
    assert docs.main(["--check", str(target)]) == 1


def test_the_document_shows_type_default_bounds_and_source() -> None:
    text = docs.render()
    assert "| `top_p` | number | `1.0` |  | above 0, at most 1 |" in text
    assert "k1.5 section 2.6.2: partial rollouts" in text
    assert "Stands at `steps[].sft.learning_rate`, `steps[].rl.learning_rate`." in text
    assert "| `name` | text | required |" in text
