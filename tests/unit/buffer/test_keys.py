"""Key names: one hash slot, one place."""

import re

import pytest

from crescendo.buffer import keys
from crescendo.buffer.scripts import script, script_names
from crescendo.common.errors import RequestError
from crescendo.common.types import GroupId


def test_all_keys_of_a_run_share_its_hash_tag() -> None:
    made = keys.Keys("quickstart-1a2b")
    names = [
        made.fence,
        made.schema,
        made.records,
        made.payload(GroupId("g")),
        made.redo(3),
        made.weights(7),
    ]
    assert len(set(names)) == len(names)
    assert all(name.startswith("{crescendo:quickstart-1a2b}:") for name in names)


@pytest.mark.parametrize("run_id", ["", "a}b", "{a", "a b", "a:b", "ä", "x" * 129, "a\n"])
def test_run_ids_that_would_change_the_slot_are_refused(run_id: str) -> None:
    with pytest.raises(RequestError, match="run id"):
        keys.Keys(run_id)


def test_every_key_that_a_script_touches_is_in_the_schema() -> None:
    documented = set(re.findall(r"^\| ([a-z_]+)[:A-Z<>a-z]* +\|", keys.__doc__ or "", re.MULTILINE))
    touched = {
        name
        for one in script_names()
        for name in re.findall(r"call\('[A-Z]+', '([a-z_]+)", script(one).text)
        + re.findall(r"(?:requeue|put|take)\('([a-z_]+)", script(one).text)
    }
    assert {"fence", "records", "leases", "payload"} <= touched
    assert touched <= documented
