"""Small semantic changes to a program: what weak tests let pass.

Each operator changes one place: a comparison, a number, an operation, a bound, a statement. Places are drawn with a
seed. A mutant that passes all tests survives: the tests are weak there, or the change changes nothing.
"""

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATIONS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """operator: which kind of change; line: of the place in the original."""

    operator: str
    line: int
    source: str


def mutants_of(source: str, count: int, rng: random.Random) -> list[Mutant]:
    """So many mutants of a program at different places, fewer if it has fewer; none if it is no Python."""
    try:
        places = list(_places(ast.parse(source)))
    except (SyntaxError, ValueError):
        return []
    found: list[Mutant] = []
    for number in rng.sample(range(len(places)), min(count, len(places))):
        tree = ast.parse(source)
        operator, node = list(_places(tree))[number]
        _change(operator, node)
        found.append(Mutant(operator, getattr(node, "lineno", 0), ast.unparse(ast.fix_missing_locations(tree))))
    return found


def _places(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
            yield "comparison", node
        elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _OPERATIONS:
            yield "arithmetic", node
        elif isinstance(node, ast.BoolOp):
            yield "and/or", node
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield "constant", node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            yield "min/max", node
        elif isinstance(node, ast.If | ast.While):
            yield "condition", node
        elif isinstance(node, ast.Return) and node.value is not None:
            yield "return", node


def _change(operator: str, node: ast.AST) -> None:
    match node:
        case ast.Compare():
            node.ops[0] = _COMPARISONS[type(node.ops[0])]()
        case ast.BinOp() | ast.AugAssign():
            node.op = _OPERATIONS[type(node.op)]()
        case ast.BoolOp():
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        case ast.Constant():
            assert isinstance(node.value, int)
            node.value += 1
        case ast.Call():
            assert isinstance(node.func, ast.Name)
            node.func.id = _FUNCTIONS[node.func.id]
        case ast.If() | ast.While():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Return():
            node.value = ast.Constant(None)
