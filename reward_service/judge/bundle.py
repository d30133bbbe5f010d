"""Makes one program text of the modules in `inside`: the sandbox has no copy of this package to import from."""

import ast
from functools import lru_cache
from importlib.resources import files

_PACKAGE = "crescendo.reward_service.judge.inside"
_WIRE = ("wire", "structures", "channel")


@lru_cache
def bundled(program: str) -> bytes:
    """Source of `program` and of the modules it needs, in one namespace, without comments and docstrings."""
    names = ("prelude", *_WIRE, program)
    parts = [_stripped((files(_PACKAGE) / f"{name}.py").read_text()) for name in names]
    return "\n".join(parts).encode()


def _stripped(source: str) -> str:
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not _is_own_import(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _is_own_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE)
