"""Fields that the API server drops from a submitted RLJob are found by their path."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from crescendo.controller.operator.jobs import dropped

TREES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=12,
)


def with_defaults(tree: Any) -> Any:
    """What the server makes of a tree that it knows whole: it adds fields."""
    if isinstance(tree, dict):
        return {"added": 1, **{name: with_defaults(child) for name, child in tree.items()}}
    return [with_defaults(child) for child in tree] if isinstance(tree, list) else tree


@given(TREES)
def test_what_is_only_added_to_is_not_dropped(tree: Any) -> None:
    assert dropped(tree, with_defaults(tree), "spec") == []


def test_each_dropped_field_is_named_where_it_stands() -> None:
    given_spec = {"image": "x", "sed": 1, "run": {"steps": [{"rl": {"stages": [{"name": "a", "typo": 1}]}}]}, "b": None}
    stored = {"image": "x", "run": {"steps": [{"rl": {"stages": [{"name": "a"}]}}]}}
    assert dropped(given_spec, stored, "spec") == ["spec.sed", "spec.run.steps.rl.stages.typo"]
