"""Reads functional tests without running them: assertions become calls, a comparator and what is expected.

    def check(candidate):
        assert candidate(nums = [3, 3], target = 6) == [0, 1]      call 0: {nums, target}; compared by ==
    check(Solution().twoSum)                                       entry: Solution, (), twoSum

Calls are what the candidate's sandbox gets. The rest of an assertion stays here as a syntax tree with holes, and is
evaluated on the answers by `expressions`. A check that is anything else (loops, helpers, mutated arguments) raises
NotClosedError; `replay` runs it in a sandbox of its own.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from crescendo.reward_service.judge.expressions import FUNCTIONS, Evaluator, NotClosedError, dotted, require_closed

MAX_CASES = 10_000

Entry = tuple[str | None, ...]  # a name, then attributes and, as None, calls without arguments


@dataclass(frozen=True)
class Call:
    """One call of the candidate."""

    arguments: tuple[object, ...]
    named: dict[str, object]


@dataclass(frozen=True)
class Case:
    """One assertion. holes: the nodes of `test` that are calls of the candidate, with the calls' numbers."""

    test: ast.expr
    holes: dict[int, int]

    @property
    def calls(self) -> Sequence[int]:
        """The calls whose answers it is about."""
        return tuple(self.holes.values())

    @property
    def comparator(self) -> str:
        """What compares: ==, is_same_tree, <, ..."""
        if isinstance(self.test, ast.Compare):
            around = "" if id(self.test.left) in self.holes else f"{ast.unparse(self.test.left).split('(')[0]} "
            return around + type(self.test.ops[0]).__name__
        return dotted(self.test.func) if isinstance(self.test, ast.Call) else type(self.test).__name__

    def holds(self, answers: Sequence[object]) -> bool:
        """Whether the assertion is true of the answers; what raises in it, as with wrong types, makes it false."""
        given = {node: answers[call] for node, call in self.holes.items()}
        try:
            return bool(Evaluator(given).value(self.test))
        except Exception:  # noqa: BLE001 - a comparison of unlike values raises what it likes; in a check it fails
            return False


@dataclass(frozen=True)
class EqualCase:
    """An answer that must equal one of some values, as APPS compares: tuples count as lists."""

    call: int
    accepted: tuple[object, ...]

    @property
    def calls(self) -> Sequence[int]:
        """The call whose answer it is about."""
        return (self.call,)

    def holds(self, answers: Sequence[object]) -> bool:
        """Whether the answer is one of the accepted."""
        found = answers[self.call]
        return (list(found) if isinstance(found, tuple) else found) in self.accepted


@dataclass(frozen=True)
class FunctionalTests:
    """Tests of a function: which one, the calls, and what must be true of the answers."""

    entry: Entry
    calls: tuple[Call, ...]
    cases: tuple[Case | EqualCase, ...]


@dataclass(frozen=True)
class CheckSource:
    """A check's text taken apart as far as any kind of check allows.

    body: what makes the check; function: the name that takes the candidate, empty if the assertions stand alone.
    """

    entry: Entry
    body: list[ast.stmt]
    function: str


def split_check(source: str, entry_point: str = "") -> CheckSource:
    """Finds the entry and the check in a text; raises NotClosedError where there is none.

    entry_point: the candidate's name where the text does not give it, as in HumanEval's data.
    """
    try:
        body = ast.parse(source).body
        declared = entry_of(ast.parse(entry_point, mode="eval").body) if entry_point else ()
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotClosedError(f"the tests are not Python: {type(error).__name__}") from None
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef) and len(node.args.args) == 1]
    name = "check" if "check" in functions else ""
    if name and _is_call_of(body[-1], name):
        last = body.pop()
        assert isinstance(last, ast.Expr)
        assert isinstance(last.value, ast.Call)
        argument = last.value.args[0]
        if not (entry_point and isinstance(argument, ast.Name)):
            declared = entry_of(argument)
    if not declared:
        declared = (_only_function(body),)
    return CheckSource(declared, body, name)


@lru_cache(maxsize=512)  # the samples of one prompt share their tests
def parse_check(source: str, entry_point: str = "") -> FunctionalTests:
    """The tests of a text; raises NotClosedError for what is not a list of closed assertions."""
    check = split_check(source, entry_point)
    if check.function:
        functions = [node for node in check.body if isinstance(node, ast.FunctionDef)]
        others = [node for node in check.body if not (isinstance(node, ast.FunctionDef) or _is_harmless(node))]
        if len(functions) != 1 or others:
            raise NotClosedError("the tests are more than one check function")
        statements, candidate = functions[0].body, functions[0].args.args[0].arg
    else:
        statements, candidate = check.body, str(check.entry[0])
        if len(check.entry) != 1:
            raise NotClosedError("the tests do not say by which name they call the candidate")
    reader = _Reader(candidate)
    try:
        for statement in statements:
            reader.read(statement)
    except RecursionError:
        raise NotClosedError("an expression is nested too deeply") from None
    if not reader.calls:
        raise NotClosedError("the tests never call the candidate")
    return FunctionalTests(check.entry, tuple(reader.calls), tuple(reader.cases))


def entry_of(node: ast.expr) -> Entry:
    """`Solution().twoSum` as (Solution, None, twoSum); raises NotClosedError for other shapes."""
    match node:
        case ast.Name(id=name):
            return (name,)
        case ast.Attribute(value=value, attr=name):
            return (*entry_of(value), name)
        case ast.Call(func=function, args=[], keywords=[]):
            return (*entry_of(function), None)
    raise NotClosedError(f"{ast.unparse(node)[:80]!r} does not name the candidate")


class _Reader:
    def __init__(self, candidate: str) -> None:
        self.calls: list[Call] = []
        self.cases: list[Case] = []
        self._candidate = candidate

    def read(self, statement: ast.stmt) -> None:
        if _is_harmless(statement):
            return
        if not isinstance(statement, ast.Assert):
            raise NotClosedError(f"a check holds the statement {type(statement).__name__}")
        if len(self.cases) >= MAX_CASES:
            raise NotClosedError(f"a check has more than {MAX_CASES} cases")
        holes: dict[int, int] = {}
        for node in self._candidate_calls(statement.test):
            holes[id(node)] = len(self.calls)
            self.calls.append(self._call(node))
        require_closed(statement.test, holes)
        case = Case(statement.test, holes)
        if holes:
            self.cases.append(case)
        elif not case.holds(()):
            raise NotClosedError("an assertion about nothing is false")

    def _candidate_calls(self, test: ast.expr) -> Iterator[ast.Call]:
        names = [node for node in ast.walk(test) if isinstance(node, ast.Name) and node.id == self._candidate]
        calls = [node for node in ast.walk(test) if isinstance(node, ast.Call) and node.func in names]
        if len(calls) != len(names):
            raise NotClosedError("the candidate is used otherwise than called")
        # In the order of the text, which is the order of evaluation.
        return iter(sorted(calls, key=lambda call: (call.lineno, call.col_offset)))

    def _call(self, node: ast.Call) -> Call:
        arguments: list[object] = []
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                arguments += _constant(argument.value)
            else:
                arguments.append(_constant(argument))
        if any(keyword.arg is None for keyword in node.keywords):
            raise NotClosedError("the candidate is called with **")
        return Call(tuple(arguments), {str(keyword.arg): _constant(keyword.value) for keyword in node.keywords})


def _constant(node: ast.expr) -> Any:
    require_closed(node)
    try:
        return Evaluator({}).value(node)
    except Exception as error:  # noqa: BLE001 - whatever it is, the sandbox may raise it as well
        raise NotClosedError(f"{ast.unparse(node)[:80]!r} raises {type(error).__name__}") from None


def _is_call_of(node: ast.stmt, name: str) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and dotted(node.value.func) == name
        and len(node.value.args) == 1
    )


def _is_harmless(node: ast.stmt) -> bool:
    """Whether a statement changes nothing: pass, a docstring, an import, a constant that data sets note down."""
    if isinstance(node, ast.Assign):
        return [ast.unparse(target) for target in node.targets] == ["METADATA"]
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_text or isinstance(node, ast.Pass | ast.Import | ast.ImportFrom)


def _only_function(body: list[ast.stmt]) -> str:
    """The one name that assertions call and that is none of Python's: the candidate, where nobody names it."""
    names = {
        node.func.id
        for statement in body
        if isinstance(statement, ast.Assert)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in FUNCTIONS
    }
    if len(names) != 1:
        raise NotClosedError("the tests do not name the candidate")
    return names.pop()
