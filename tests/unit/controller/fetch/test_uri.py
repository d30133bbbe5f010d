"""URIs of models and data sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.common.errors import ConfigError
from crescendo.controller.fetch import Kind, parse


@pytest.mark.parametrize(
    ("uri", "kind", "owner", "path"),
    [
        ("file:///data/train.jsonl", Kind.DATASET, "", "/data/train.jsonl"),
        ("pvc://models/qwen/7b/", Kind.MODEL, "models", "qwen/7b"),
        ("pvc://models", Kind.MODEL, "models", ""),
        ("s3://bucket/a/b", Kind.MODEL, "bucket", "a/b"),
        ("hf://Qwen/Qwen3-0.6B", Kind.MODEL, "Qwen/Qwen3-0.6B", ""),
        ("hf://Qwen/Qwen3@abc", Kind.MODEL, "Qwen/Qwen3@abc", ""),
        ("hf://openai/gsm8k/main/train.parquet", Kind.DATASET, "datasets/openai/gsm8k", "main/train.parquet"),
        ("hf://datasets/openai/gsm8k", Kind.DATASET, "datasets/openai/gsm8k", ""),
    ],
)
def test_forms(uri: str, kind: Kind, owner: str, path: str) -> None:
    source = parse(uri, kind)
    assert (source.scheme, source.owner, source.path) == (uri.split(":")[0], owner, path)


@pytest.mark.parametrize(
    "uri",
    ["", "models/qwen", "gs://bucket/key", "file://relative", "s3://bucket/../other", "hf://alone", "pvc://No_Claim/x",
     "hf://datasets/openai/gsm8k"],
)  # fmt: skip
def test_what_is_wrong_is_told_with_the_field(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"spec\.model") as caught:
        parse(uri, Kind.MODEL, field="spec.model.uri")
    assert caught.value.field == "spec.model.uri"
    assert "://" in caught.value.fix


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        source = parse(text, Kind.DATASET)
    except ConfigError:
        return
    assert ".." not in source.path.split("/")
