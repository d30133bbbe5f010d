"""Values as bytes, between a candidate's sandbox and the process that judges: closed, with limits, no code in it.

    N T F                     None, True, False
    i n bytes                 int of any size, two's complement
    d 8 bytes                 float
    s n bytes, b n bytes      str (UTF-8, lone surrogates kept), bytes
    l n ..., t n ..., S n ..., f n ...    list, tuple, set, frozenset of n values
    m n key value ...         dict
    R n ...                   binary tree in level order, None for a child that is not there
    L n ...                   linked list

Lengths are four bytes; everything is little-endian. Whoever decodes gets plain built-ins, `Tree` and `Linked`, and
nothing else. Cycles break the limits on depth and number, or are nodes met twice. Subclasses of built-ins travel as
what they extend, objects with `val` and `next` or with `val`, `left` and `right` as what they start.
"""

import struct
from collections.abc import Callable, Iterable

MAX_DEPTH = 64
MAX_VALUES = 1_000_000
MAX_BYTES = 8 << 20
MAX_SHARED_HASHES = 1_000

_LENGTH = struct.Struct("<I")
_FLOAT = struct.Struct("<d")
_CONSTANTS: dict[bytes, object] = {b"N": None, b"T": True, b"F": False}
_SEQUENCES: dict[bytes, Callable[[list[object]], object]] = {b"l": list, b"t": tuple, b"S": set, b"f": frozenset}
_SEQUENCE_TAGS: tuple[tuple[type[Iterable[object]], bytes], ...] = (
    (list, b"l"),
    (tuple, b"t"),
    (set, b"S"),
    (frozenset, b"f"),
)


class WireError(ValueError):
    """A value that cannot travel, or bytes that are no value."""


class Linked:
    """A linked list; equal to a linked list of the same values, to nothing else."""

    def __init__(self, values: Iterable[object]) -> None:
        self.values = tuple(values)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.values == other.values

    def __hash__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.values)!r})"


class Tree(Linked):
    """A binary tree in level order; equal to a tree of the same shape and values, to nothing else."""

    def __init__(self, values: Iterable[object]) -> None:
        kept: list[object] = []
        num_places = 1
        for value in values:
            if not num_places:
                break
            kept.append(value)
            num_places += -1 if value is None else 1
        while kept and kept[-1] is None:
            kept.pop()
        super().__init__(kept)


def encode(value: object, max_bytes: int = MAX_BYTES) -> bytes:
    """The value's bytes; raises WireError for what cannot travel or is larger than the limits."""
    writer = _Writer(max_bytes)
    writer.write(value, 0)
    return bytes(writer.out)


class _Writer:
    def __init__(self, max_bytes: int) -> None:
        self.out = bytearray()
        self._max_bytes = max_bytes
        self._num_left = MAX_VALUES

    def write(self, value: object, depth: int) -> None:
        self._num_left -= 1
        if depth > MAX_DEPTH or self._num_left < 0 or len(self.out) > self._max_bytes:
            raise WireError("a value is too deep, has too many parts or is too large, or contains itself")
        if value is None:
            self.out += b"N"
        elif isinstance(value, bool):
            self.out += b"T" if value else b"F"
        elif isinstance(value, int):
            self._blob(b"i", int.to_bytes(value, int.bit_length(value) // 8 + 1, "little", signed=True))
        elif isinstance(value, float):
            self.out += b"d" + _FLOAT.pack(value)
        elif isinstance(value, str):
            self._blob(b"s", str.encode(value, "utf-8", "surrogatepass"))
        elif isinstance(value, (bytes, bytearray)):
            self._blob(b"b", bytes(value))
        else:
            self._compound(value, depth + 1)

    def _compound(self, value: object, depth: int) -> None:
        for kind, tag in _SEQUENCE_TAGS:
            if isinstance(value, kind):
                return self._values(tag, list(kind.__iter__(value)), depth)
        if isinstance(value, dict):
            return self._values(b"m", [part for pair in dict.items(value) for part in pair], depth, len(value))
        if isinstance(value, Linked):
            return self._values(b"R" if isinstance(value, Tree) else b"L", list(value.values), depth)
        if hasattr(value, "val") and hasattr(value, "left") and hasattr(value, "right"):
            return self._values(b"R", self._level_order(value), depth)
        if hasattr(value, "val") and hasattr(value, "next"):
            return self._values(b"L", self._chain(value), depth)
        if hasattr(value, "__index__"):  # an int of another library
            return self.write(value.__index__(), depth)
        raise WireError(f"a value of type {type(value).__name__} cannot travel")

    def _values(self, tag: bytes, values: list[object], depth: int, count: int | None = None) -> None:
        self.out += tag + _LENGTH.pack(len(values) if count is None else count)
        for value in values:
            self.write(value, depth)

    def _blob(self, tag: bytes, data: bytes) -> None:
        if len(data) > self._max_bytes:
            raise WireError("a value is too large")
        self.out += tag + _LENGTH.pack(len(data)) + data

    def _chain(self, node: object) -> list[object]:
        values: list[object] = []
        seen: set[int] = set()
        while node is not None:
            self._meet(node, seen)
            values.append(node.val)  # type: ignore[attr-defined]
            node = node.next  # type: ignore[attr-defined]
        return values

    def _level_order(self, root: object) -> list[object]:
        values: list[object] = []
        seen: set[int] = set()
        row: list[object] = [root]
        while row:
            below: list[object] = []
            for node in row:
                if node is None:
                    values.append(None)
                    continue
                self._meet(node, seen)
                if node.val is None:  # type: ignore[attr-defined]
                    raise WireError("a tree's node without a value cannot travel")
                values.append(node.val)  # type: ignore[attr-defined]
                below += [node.left, node.right]  # type: ignore[attr-defined]
            row = below
        return list(Tree(values).values)

    def _meet(self, node: object, seen: set[int]) -> None:
        if id(node) in seen or len(seen) >= self._num_left:
            raise WireError("nodes form a cycle, are shared or are too many")
        seen.add(id(node))


def decode(
    data: bytes,
    make_tree: Callable[[list[object]], object] = Tree,
    make_list: Callable[[list[object]], object] = Linked,
) -> object:
    """The value; raises WireError for anything that `encode` does not write. Nothing is allocated on a mere claim."""
    reader = _Reader(data, make_tree, make_list)
    value = reader.read(0)
    if reader.at != len(data):
        raise WireError("bytes follow the value")
    return value


class _Reader:
    def __init__(
        self, data: bytes, make_tree: Callable[[list[object]], object], make_list: Callable[[list[object]], object]
    ) -> None:
        self.at = 0
        self._data = data
        self._make = {**_SEQUENCES, b"R": make_tree, b"L": make_list}
        self._num_left = MAX_VALUES

    def read(self, depth: int) -> object:
        self._num_left -= 1
        if depth > MAX_DEPTH or self._num_left < 0:
            raise WireError("a value is too deep or has too many parts")
        tag = self._take(1)
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag == b"d":
            return float(_FLOAT.unpack(self._take(8))[0])
        length = int(_LENGTH.unpack(self._take(4))[0])
        if tag == b"i":
            return int.from_bytes(self._take(length), "little", signed=True)
        if tag == b"s":
            return self._text(length)
        if tag == b"b":
            return self._take(length)
        return self._compound(tag, length, depth + 1)

    def _compound(self, tag: bytes, length: int, depth: int) -> object:
        if tag == b"m":
            pairs = [(self.read(depth), self.read(depth)) for _ in range(length)]
            _require_spread([key for key, _ in pairs])
            return dict(pairs)
        if tag not in self._make:
            raise WireError(f"{tag!r} is no tag")
        values = [self.read(depth) for _ in range(length)]
        if tag in b"Sf":
            _require_spread(values)
        return self._make[tag](values)

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise WireError("a string is not UTF-8") from None

    def _take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self._data):
            raise WireError("the value is cut off")
        found = self._data[self.at : end]
        self.at = end
        return found


def _require_spread(keys: list[object]) -> None:
    """Refuses keys that have no hash, and many that share one: a table of those takes quadratic time to build."""
    try:
        num_shared = len(keys) - len({hash(key) for key in keys})
    except TypeError:
        raise WireError("a key or a member of a set is not hashable") from None
    if num_shared > MAX_SHARED_HASHES:
        raise WireError("too many keys have the same hash")
