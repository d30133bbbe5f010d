"""The checkpoint store in a run file: what cannot be is refused with its field."""

import pytest

from crescendo.common.config.check import check
from crescendo.common.config.schema import Config


def problems(**settings: object) -> dict[str, str]:
    config = Config()
    channel = settings.pop("weight_channel", "shm")
    config.trainer.weight_channel = str(channel)
    for name, value in settings.items():
        setattr(config.checkpoint_store, name, value)
    known = {problem.field: problem.message for problem in check(Config())}
    return {problem.field: problem.message for problem in check(config) if problem.field not in known}


@pytest.mark.parametrize("url", ["", "runs/store", "s3://runs/team", "file:///mnt/store"])
def test_folders_and_urls_of_what_lasts_are_taken(url: str) -> None:
    assert problems(url=url) == {}


@pytest.mark.parametrize(
    ("settings", "field", "says"),
    [
        ({"url": "memory://runs"}, "checkpoint_store.url", "lasts no longer than a process"),
        ({"url": "s4://runs"}, "checkpoint_store.url", "nothing that fsspec knows"),
        ({"credentials": "/etc/keys"}, "checkpoint_store.credentials", "there is no store"),
        ({"carries_inputs": True}, "checkpoint_store.carries_inputs", "there is no store"),
        (
            {"url": "s3://runs", "carries_inputs": True, "weight_channel": "disk"},
            "trainer.weight_channel",
            "workers share no folder",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(settings: dict[str, object], field: str, says: str) -> None:
    found = problems(**settings)
    assert list(found) == [field]
    assert says in found[field]
