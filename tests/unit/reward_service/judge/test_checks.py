"""Checks become calls and assertions, without anything being run."""

import ast

import pytest

from crescendo.reward_service.judge.checks import Call, entry_of, parse_check
from crescendo.reward_service.judge.expressions import Evaluator, NotClosedError, require_closed
from crescendo.reward_service.judge.inside.wire import Linked, Tree

LEETCODE = """def check(candidate):
    assert candidate(nums = [2,7,11,15], target = 9) == [0,1]
    assert candidate(nums = [3,3], target = -6) == [0,1]

check(Solution().twoSum)"""


def test_a_leetcode_check() -> None:
    tests = parse_check(LEETCODE)
    assert tests.entry == ("Solution", None, "twoSum")
    assert tests.calls == (
        Call((), {"nums": [2, 7, 11, 15], "target": 9}),
        Call((), {"nums": [3, 3], "target": -6}),
    )
    assert [case.comparator for case in tests.cases] == ["Eq", "Eq"]
    assert tests.cases[0].holds([[0, 1], None])
    assert not tests.cases[0].holds([(0, 1), None])
    assert not tests.cases[1].holds([[0, 1], [1, 0]])


def test_nodes_are_values_of_their_own() -> None:
    tests = parse_check(
        "def check(candidate):\n"
        "    assert is_same_tree(candidate(root = tree_node([1,None,2,3])), tree_node([1,2,None,None,None]))\n"
        "    assert is_same_list(candidate(head = list_node([])), list_node([5]))\n"
        "check(Solution().f)"
    )
    assert tests.calls == (Call((), {"root": Tree([1, None, 2, 3])}), Call((), {"head": None}))
    assert tests.cases[0].holds([Tree([1, 2]), None])
    assert not tests.cases[0].holds([[1, 2], None])
    assert tests.cases[1].holds([None, Linked([5])])
    assert not tests.cases[1].holds([None, [5]])


def test_a_humaneval_check_with_its_entry_point() -> None:
    source = (
        "METADATA = {'author': 'jt'}\n\ndef check(candidate):\n"
        "    '''why'''\n    assert abs(candidate(3.5) - 0.5) < 1e-6\n    assert True, 'a remark'\n"
    )
    tests = parse_check(source, "truncate_number")
    assert tests.entry == ("truncate_number",)
    assert len(tests.cases) == 1
    assert tests.cases[0].holds([0.5000000001])
    assert not tests.cases[0].holds([0.6])
    assert not tests.cases[0].holds(["0.5"])
    assert not tests.cases[0].holds([float("nan")])


def test_assertions_alone_name_the_candidate_themselves() -> None:
    tests = parse_check(
        "import math\nassert set(similar((3, 4), (5, 4))) == {4}\nassert sorted(similar((1,), (1,))) == [1]"
    )
    assert tests.entry == ("similar",)
    assert tests.calls[0] == Call(((3, 4), (5, 4)), {})
    assert tests.cases[0].holds([(4, 4), None])


@pytest.mark.parametrize(
    ("assertion", "right", "wrong"),
    [
        ("candidate(1) is None", None, 0),
        ("candidate(1) is True", True, 1),
        ("candidate(1)", [0], []),
        ("not candidate(1)", 0, 1),
        ("candidate(1) in (1, 2)", 2, 3),
        ("candidate(1) not in [1]", 2, 1),
        ("1 < candidate(1) <= 3", 3, 1),
        ("len(candidate(1)) == 2", "ab", 2),
        ("round(candidate(1), 2) == 0.33", 1 / 3, 0.34),
        ("math.isclose(candidate(1), 0.3, rel_tol=1e-3)", 0.3001, 0.31),
        ("Counter(candidate(1)) == Counter([1, 1, 2])", [1, 2, 1], [1, 2]),
        ("sorted(candidate(1), reverse=True) == [2, 1]", [1, 2], [1, "a"]),
        ("isinstance(candidate(1), (int, float)) and candidate(1) > 0", 1, "a"),
        ("candidate(1)[0] == 5", [5], []),
        ("candidate(1) == float('inf')", float("inf"), 1e308),
        ("candidate(1) == 'a' * 3 + 'b'", "aaab", "aaa"),
        ("candidate(1) == {'a': [1], **{}}".replace(", **{}", ""), {"a": [1]}, {"a": (1,)}),
    ],
)
def test_comparators(assertion: str, right: object, wrong: object) -> None:
    tests = parse_check(f"def check(candidate):\n    assert {assertion}\ncheck(f)")
    for case in tests.cases:
        assert case.holds([right] * len(tests.calls))
        assert not case.holds([wrong] * len(tests.calls))


@pytest.mark.parametrize(
    "source",
    [
        "def check(candidate):\n    for i in range(3):\n        assert candidate(i) == i\ncheck(f)",
        "def check(candidate):\n    x = [1]\n    candidate(x)\n    assert x == []\ncheck(f)",
        "def check(candidate):\n    assert candidate(candidate(1)) == 1\ncheck(f)",
        "def check(candidate):\n    assert [candidate(i) for i in (1, 2)] == [1, 2]\ncheck(f)",
        "def check(candidate):\n    assert candidate(1).strip() == ''\ncheck(f)",
        "def check(candidate):\n    assert candidate(open('x')) == 1\ncheck(f)",
        "def check(candidate):\n    assert candidate.__globals__\ncheck(f)",
        "def check(candidate):\n    assert candidate(1) == __import__('os')\ncheck(f)",
        "def check(candidate):\n    assert candidate(1) is 5\ncheck(f)",
        "def check(candidate):\n    assert candidate(1) == 1 or candidate(*candidate.x)\ncheck(f)",
        "def check(candidate):\n    assert sorted(candidate(1), key=len) == [1]\ncheck(f)",
        "def check(candidate):\n    assert candidate(1) == 1 or eval('1')\ncheck(f)",
        "def check(candidate):\n    assert f'{candidate(1)}' == '1'\ncheck(f)",
        "def check(candidate):\n    assert candidate(1) == f(2)\ncheck(f)",
        "def check(candidate):\n    assert candidate(10 ** 10 ** 10) == 1\ncheck(f)",
        "def check(candidate):\n    pass\ncheck(f)",
        "def check(candidate):\n    assert False\n    assert candidate(1) == 1\ncheck(f)",
        "check(f)",
        "assert a(1) == b(2)",
        "nonsense(",
        "",
        "x" * 100_000 + "(" * 300,
        "assert f(" + "-" * 50_000 + "1)",
    ],
    ids=range(23),
)
def test_whatever_else_is_told_apart(source: str) -> None:
    with pytest.raises(NotClosedError):
        parse_check(source)


def test_entries() -> None:
    assert entry_of(ast.parse("a.b().c", mode="eval").body) == ("a", "b", None, "c")
    for text in ("f(1)", "f[0]", "f() + 1", "(lambda: 0)"):
        with pytest.raises(NotClosedError):
            entry_of(ast.parse(text, mode="eval").body)


def test_large_products_and_powers_do_not_happen() -> None:
    for text in ("[0] * 10**7", "'a' * 10**9", "2 ** 10**6", "'%9999999999d' % 1"):
        node = ast.parse(text, mode="eval").body
        require_closed(node)
        with pytest.raises((ValueError, TypeError)):
            Evaluator({}).value(node)
