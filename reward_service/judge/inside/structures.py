"""The nodes and helpers that LeetCode's signatures and checks speak of."""

from collections.abc import Iterable


class ListNode:
    """A node of a singly linked list."""

    def __init__(self, val: object = 0, next: "ListNode | None" = None) -> None:
        self.val = val
        self.next = next


class TreeNode:
    """A node of a binary tree."""

    def __init__(self, val: object = 0, left: "TreeNode | None" = None, right: "TreeNode | None" = None) -> None:
        self.val = val
        self.left = left
        self.right = right


def list_node(values: Iterable[object]) -> ListNode | None:
    """The head of a linked list of values; None for no values."""
    head: ListNode | None = None
    for value in reversed(list(values)):
        head = ListNode(value, head)
    return head


def tree_node(values: Iterable[object]) -> TreeNode | None:
    """The root of a binary tree from level order, None for a child that is not there; None for no values."""
    rest = iter(values)
    first = next(rest, None)
    if first is None:
        return None
    root = TreeNode(first)
    row = [root]
    while row:
        below: list[TreeNode] = []
        for node in row:
            for side in ("left", "right"):
                value = next(rest, None)
                if value is not None:
                    child = TreeNode(value)
                    setattr(node, side, child)
                    below.append(child)
        row = below
    return root


def is_same_list(first: ListNode | None, second: ListNode | None) -> bool:
    """Whether two linked lists hold the same values."""
    while first is not None and second is not None:
        if first.val != second.val:
            return False
        first, second = first.next, second.next
    return first is None and second is None


def is_same_tree(first: TreeNode | None, second: TreeNode | None) -> bool:
    """Whether two binary trees have the same shape and values."""
    pairs = [(first, second)]
    while pairs:
        one, other = pairs.pop()
        if one is None and other is None:
            continue
        if one is None or other is None or one.val != other.val:
            return False
        pairs += [(one.left, other.left), (one.right, other.right)]
    return True
