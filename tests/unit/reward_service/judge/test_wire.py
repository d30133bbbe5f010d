"""The closed encoding: what travels arrives as it was, and nothing else is accepted."""

import collections
import enum
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crescendo.reward_service.judge.inside.structures import ListNode, TreeNode, list_node, tree_node
from crescendo.reward_service.judge.inside.wire import MAX_DEPTH, Linked, Tree, WireError, decode, encode

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary(max_size=20)
)
keys = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=3)
        | st.sets(keys, max_size=3)
        | st.builds(Linked, st.lists(inner, max_size=3))
    ),
    max_leaves=12,
)


@given(values)
def test_a_value_arrives_as_it_was(value: object) -> None:
    found = decode(encode(value))
    assert found == value
    assert repr(type(found)) == repr(type(value))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    try:
        value = decode(data)
    except WireError:
        return
    assert encode(value, 1 << 20)


@given(values, st.data())
def test_a_damaged_value_is_never_anything_but_a_value_or_refused(value: object, data: st.DataObject) -> None:
    packed = bytearray(encode(value))
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] = data.draw(st.integers(0, 255))
    for damaged in (bytes(packed), bytes(packed[:place])):
        try:
            decode(damaged)
        except WireError:
            continue


@pytest.mark.parametrize("number", [0, -1, 127, 128, -128, -129, 2**64, -(2**64), 1 << 20_000], ids=int.bit_length)
def test_ints_have_any_size(number: int) -> None:
    assert decode(encode(number)) == number


def test_floats_keep_what_is_special() -> None:
    assert math.isnan(decode(encode(math.nan)))  # type: ignore[arg-type]
    assert math.copysign(1, decode(encode(-0.0))) == -1  # type: ignore[arg-type]


def test_subclasses_travel_as_what_they_extend() -> None:
    class Colour(enum.IntEnum):
        RED = 3

    point = collections.namedtuple("point", "x y")(1, 2)
    counts = collections.defaultdict(int, a=1)
    found = decode(encode([Colour.RED, point, counts, collections.OrderedDict(b=2), True]))
    assert found == [3, (1, 2), {"a": 1}, {"b": 2}, True]
    assert [type(part) for part in found] == [int, tuple, dict, dict, bool]  # type: ignore[attr-defined]


def test_a_subclass_cannot_change_what_travels() -> None:
    class Liar(list[int]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter([1, 2, 3])

        def __len__(self) -> int:
            return 3

    assert decode(encode(Liar([9]))) == [9]


@pytest.mark.parametrize("value", [object(), len, iter([]), range(3), 1j, collections.deque([1]), lambda: 0])
def test_what_is_not_on_the_list_does_not_travel(value: object) -> None:
    with pytest.raises(WireError, match="cannot travel"):
        encode(value)


def test_cycles_and_bombs_are_refused() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    deep: list[object] = []
    for _ in range(MAX_DEPTH + 2):
        deep = [deep]
    bomb: list[object] = [0] * 10
    for _ in range(30):
        bomb = [bomb] * 10
    ring = ListNode(1)
    ring.next = ring
    tree = TreeNode(1)
    tree.left = tree
    for value in (cycle, deep, bomb, ring, tree, "x" * (9 << 20)):
        with pytest.raises(WireError):
            encode(value)


def test_a_shared_node_is_refused() -> None:
    leaf = TreeNode(2)
    with pytest.raises(WireError, match="shared"):
        encode(TreeNode(1, leaf, leaf))


def test_a_claimed_length_allocates_nothing() -> None:
    for tag in b"lmSftRLisb":
        with pytest.raises(WireError):
            decode(bytes([tag]) + struct.pack("<I", 2**32 - 1) + b"N")


@pytest.mark.parametrize(
    "data", [b"", b"Z", b"NN", b"s\x01\0\0\0\xff", b"S\x01\0\0\0l\0\0\0\0", b"m\x01\0\0\0m\0\0\0\0N", b"d1234"]
)
def test_bytes_that_are_no_value(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


@given(st.lists(st.none() | st.integers(0, 9), max_size=20))
def test_trees_travel_by_shape(level_order: list[int | None]) -> None:
    root = tree_node(level_order)
    found = decode(encode(root))
    assert found == (Tree(level_order) if root else None)
    assert found != level_order
    again = decode(encode(found), tree_node, list_node)
    assert (decode(encode(again)) if root else None) == found


def test_linked_lists_travel_by_values() -> None:
    assert decode(encode(list_node([1, 2]))) == Linked([1, 2])
    assert decode(encode(list_node([1, 2]))) != [1, 2]
    assert Linked([1]) != Tree([1])


def test_keys_that_all_share_a_hash_are_refused() -> None:
    modulus = (1 << 61) - 1
    for value in ({number * modulus for number in range(2_000)}, {number * modulus: 0 for number in range(2_000)}):
        with pytest.raises(WireError, match="same hash"):
            decode(encode(value))
    assert len(decode(encode(set(range(5_000))))) == 5_000  # type: ignore[arg-type]
