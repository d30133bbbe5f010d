"""The library that generator programs use inside the sandbox.

A generator program makes one input. It is run once a case, each time with another number and seed:

    from cases import *
    n = size(1, 100_000)                   grows from case to case, from 1 to 100,000
    values = wholes(n, -10**9, 10**9)
    write(n, whole(1, n))                  a line: values apart by spaces, lists written out
    write(values)

Everything is drawn from `rng`, seeded by the case. After CYaRon, the library that k1.5 names (section 2.3.5).
"""

import math
import os
import random
from collections.abc import Sequence
from typing import Any

__all__ = [
    "choice",
    "count",
    "graph",
    "grid",
    "number",
    "permutation",
    "real",
    "rng",
    "shuffled",
    "size",
    "tree",
    "whole",
    "wholes",
    "word",
    "write",
]

_FIRST = ("0", "1", "1")
_given = os.environ.get("SEED", "").split()
_seed, _number, _count = _given if len(_given) == len(_FIRST) else _FIRST  # seed, case, cases

number = int(_number)  # of this case, from 1
count = int(_count)  # of all cases
rng = random.Random(f"{_seed} {_number}")

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def size(least: int, most: int) -> int:
    """least in the first case, most in the last, growing by a constant factor between them."""
    if number == 1 or most <= least:
        return least
    low = max(1, least)
    growth = math.log(most / low) * (number - 1) / max(1, count - 1)
    return min(most, round(low * math.exp(growth)))


def whole(least: int, most: int) -> int:
    """A whole number, both ends included."""
    return rng.randint(least, most)


def wholes(length: int, least: int, most: int, *, distinct: bool = False, ordered: bool = False) -> list[int]:
    """So many whole numbers."""
    found = rng.sample(range(least, most + 1), length) if distinct else [whole(least, most) for _ in range(length)]
    return sorted(found) if ordered else found


def real(least: float, most: float, digits: int = 6) -> float:
    """A number with so many digits after the point."""
    return round(rng.uniform(least, most), digits)


def choice(options: Sequence[Any]) -> Any:
    """One of them."""
    return rng.choice(options)


def shuffled(values: Sequence[Any]) -> list[Any]:
    """The same values in another order."""
    return rng.sample(list(values), len(values))


def permutation(length: int) -> list[int]:
    """1 to length in some order."""
    return shuffled(range(1, length + 1))


def word(length: int, letters: str = LETTERS) -> str:
    """A word of such letters."""
    return "".join(rng.choices(letters, k=length))


def grid(rows: int, columns: int, cells: str = ".#") -> list[str]:
    """A line of cells for each row."""
    return [word(columns, cells) for _ in range(rows)]


def tree(nodes: int, shape: str = "random") -> list[tuple[int, int]]:
    """Edges of a tree on nodes 1 to `nodes`. shape: random, path, star or binary."""
    names = permutation(nodes)
    edges: list[tuple[int, int]] = []
    for node in range(1, nodes):
        parent = {"path": node - 1, "star": 0, "binary": (node - 1) // 2}.get(shape)
        edges.append((names[whole(0, node - 1) if parent is None else parent], names[node]))
    return shuffled(edges)


def graph(nodes: int, edges: int, *, connected: bool = True, directed: bool = False) -> list[tuple[int, int]]:
    """Edges without loops or repeats on nodes 1 to `nodes`; as many as asked for, or as there can be."""
    most = nodes * (nodes - 1) // (1 if directed else 2)
    found = set(tree(nodes)) if connected and nodes > 1 else set[tuple[int, int]]()
    while len(found) < min(edges, most):
        one, other = whole(1, nodes), whole(1, nodes)
        if one != other and (directed or (other, one) not in found):
            found.add((one, other))
    return shuffled(sorted(found))


def write(*values: object) -> None:
    """One line: values apart by spaces, lists and tuples written out."""
    words: list[str] = []
    for value in values:
        parts = value if isinstance(value, list | tuple) else [value]
        words += [str(part) for part in parts]
    print(" ".join(words))
