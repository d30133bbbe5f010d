"""Rows between Python and the scripts: formats and addresses."""

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.buffer import records
from crescendo.buffer.scripts import script
from crescendo.common.types import TrajectoryId, TrajectoryState, group_id, trajectory_id

LETTERS = {"B": "B", "I2": "H", "I4": "I", "I8": "Q"}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("flush", records.UPDATE),
        ("score", records.MEMBER),
        ("load_trajectories", records.NUMBER),
        ("load_trajectories", records.LOADED),
        ("claim", records.CLAIMED),
        ("claim_finished", records.TAKEN),
    ],
)
def test_both_sides_have_one_format(name: str, row: struct.Struct) -> None:
    own = script(name).text.rpartition("wake('claim')\nend\n")[2] or script(name).text
    formats = re.findall(r"'((?:B|I\d)+)'", own)
    assert row.format in ["<" + "".join(LETTERS[one] for one in re.findall(r"B|I\d", found)) for found in formats]


def test_states_are_numbered_alike() -> None:
    found = re.search(r"NAMES = \{([^}]+)\}", script("flush").text)
    assert found is not None
    assert [name.strip(" '") for name in found.group(1).split(",")] == [state.value for state in records.STATES[1:]]
    assert {records.STATES[code] for code in records.CODES.values()} == set(records.CODES)
    assert records.STATES[0] is TrajectoryState.DROPPED


@given(draw=st.integers(0, 10**6), sample=st.integers(0, 10**4))
def test_an_id_is_its_group_and_sample(draw: int, sample: int) -> None:
    group = group_id(1, 2, draw)
    assert records.address(trajectory_id(group, sample)) == (group, sample)


@pytest.mark.parametrize("name", ["nobody", "x-s", "x-s-1", "x-s99999999", "x-s65535", "x-s1.5", ""])
def test_an_id_of_another_form_is_nobodys(name: str) -> None:
    assert records.address(TrajectoryId(name)) == (name, records.NOBODY)


def test_runs_of_a_group_are_kept_together_and_in_order() -> None:
    a, b = group_id(0, 1, 0), group_id(0, 1, 1)
    ids = [trajectory_id(a, 1), trajectory_id(a, 0), trajectory_id(b, 0), trajectory_id(a, 2)]
    assert records.by_group(ids) == [(a, [1, 0]), (b, [0]), (a, [2])]
