"""Evaluates the closed expressions that checks are made of, on plain built-ins: no eval, no attribute of any value.

A check's assertion is an expression with calls of the candidate in it. `Evaluator` takes what those calls answered and
computes the rest: literals, comparisons, arithmetic, and a fixed list of functions. Whatever else stands there makes
`require_closed` raise NotClosedError, and the check is run whole in a sandbox instead. Used in confined workers only:
the values come from a candidate.
"""

import ast
import math
import operator
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from crescendo.reward_service.judge.inside.wire import Linked, Tree

MAX_REPEATED = 1_000_000  # length of a sequence that a product makes
MAX_POWER_BITS = 100_000

_TYPES: dict[str, type] = {
    kind.__name__: kind for kind in (bool, int, float, str, bytes, list, tuple, dict, set, frozenset)
}
CONSTANTS: dict[str, Any] = {
    "math.inf": math.inf,
    "math.nan": math.nan,
    "math.pi": math.pi,
    "math.e": math.e,
    "inf": math.inf,
    **_TYPES,
}


def _equal(first: object, second: object) -> bool:
    return first == second


def _tree(values: list[object]) -> Tree | None:
    return Tree(values) if Tree(values).values else None


def _linked(values: list[object]) -> Linked | None:
    return Linked(values) if values else None


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_TYPES,
    **{f.__name__: f for f in (abs, all, any, isinstance, len, max, min, round, sorted, sum)},
    "Counter": Counter,
    "collections.Counter": Counter,
    "math.isclose": math.isclose,
    "isclose": math.isclose,
    "math.sqrt": math.sqrt,
    "math.floor": math.floor,
    "math.ceil": math.ceil,
    "tree_node": _tree,
    "list_node": _linked,
    "is_same_tree": _equal,
    "is_same_list": _equal,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class NotClosedError(ValueError):
    """An expression that is not of the closed kind; says what in it."""


class Evaluator:
    """`value(node)` of an expression. holes: what stands for nodes that are given from outside, by their id."""

    def __init__(self, holes: Mapping[int, object]) -> None:
        self._holes = holes

    def value(self, node: ast.expr) -> Any:
        """The value of a node that `require_closed` let pass; raises what Python raises for such values."""
        if id(node) in self._holes:
            return self._holes[id(node)]
        match node:
            case ast.Constant():
                return node.value
            case ast.List() | ast.Tuple() | ast.Set() | ast.Dict():
                return self._display(node)
            case ast.UnaryOp():
                return _UNARY[type(node.op)](self.value(node.operand))
            case ast.BinOp():
                return self._binary(node.op, self.value(node.left), self.value(node.right))
            case ast.BoolOp():
                return self._boolean(node.op, node.values)
            case ast.Compare():
                return self._comparison(node)
            case ast.Call():
                arguments = [self.value(argument) for argument in node.args]
                named = {str(keyword.arg): self.value(keyword.value) for keyword in node.keywords}
                return FUNCTIONS[dotted(node.func)](*arguments, **named)
            case ast.Subscript():
                return self.value(node.value)[self.value(node.slice)]
        return CONSTANTS[dotted(node)]

    def _display(self, node: ast.List | ast.Tuple | ast.Set | ast.Dict) -> Any:
        if isinstance(node, ast.Dict):
            return {self.value(k): self.value(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
        parts = [self.value(part) for part in node.elts]
        if isinstance(node, ast.List):
            return parts
        return tuple(parts) if isinstance(node, ast.Tuple) else set(parts)

    def _boolean(self, op: ast.boolop, values: list[ast.expr]) -> Any:
        found: Any = None
        for value in values:
            found = self.value(value)
            if bool(found) is isinstance(op, ast.Or):
                break
        return found

    def _comparison(self, node: ast.Compare) -> bool:
        left = self.value(node.left)
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.value(comparator)
            if not _COMPARISONS[type(op)](left, right):
                return False
            left = right
        return True

    @staticmethod
    def _binary(op: ast.operator, left: Any, right: Any) -> Any:
        if isinstance(op, ast.Mult):
            for one, other in ((left, right), (right, left)):
                if isinstance(one, int) and hasattr(other, "__len__") and one * len(other) > MAX_REPEATED:
                    raise ValueError("a product makes a very long sequence")
        are_whole = isinstance(left, int) and isinstance(right, int)
        if isinstance(op, ast.Pow) and are_whole and left.bit_length() * right > MAX_POWER_BITS:
            raise ValueError("a power is very large")
        if isinstance(op, ast.Mod) and isinstance(left, str | bytes):
            raise TypeError("% on text")
        return _BINARY[type(op)](left, right)


def require_closed(node: ast.expr, holes: Collection[int] = ()) -> None:
    """Raises NotClosedError unless `Evaluator` knows every part of an expression. holes: ids of nodes to pass over."""
    if id(node) in holes:
        return
    if not _is_known(node):
        raise NotClosedError(f"{ast.unparse(node)[:80]!r} is not of the closed kind")
    if isinstance(node, ast.Name | ast.Attribute):
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.keyword):
            require_closed(child.value, holes)
        elif isinstance(child, ast.expr) and not (isinstance(node, ast.Call) and child is node.func):
            require_closed(child, holes)


def _is_known(node: ast.expr) -> bool:
    match node:
        case ast.Constant():
            return node.value is not Ellipsis
        case ast.Dict():
            return None not in node.keys
        case ast.UnaryOp() | ast.BoolOp() | ast.List() | ast.Tuple() | ast.Set():
            return True
        case ast.BinOp():
            return type(node.op) in _BINARY
        case ast.Compare():
            # Identity means something for these three only.
            return all(
                isinstance(right, ast.Constant) and (right.value is None or isinstance(right.value, bool))
                for op, right in zip(node.ops, node.comparators, strict=True)
                if isinstance(op, ast.Is | ast.IsNot)
            )
        case ast.Call():
            names = [keyword.arg for keyword in node.keywords]
            return dotted(node.func) in FUNCTIONS and None not in names and "key" not in names
        case ast.Subscript():
            return not isinstance(node.slice, ast.Slice)
        case ast.Name() | ast.Attribute():
            return dotted(node) in CONSTANTS
    return False


def dotted(node: ast.expr) -> str:
    """`a.b` of a name or an attribute of a name; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return ""
